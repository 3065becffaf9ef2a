"""bitsandbytes' checkpoints: NF4 and FP4 (a table of 16 numbers, a scale for each 64 weights), and int8 (a scale an output).

NF4's weights lie in one row, output after output, two to a byte with the first in the high bits. With double quantization the scales
are bytes of a second table, less a mean that is written in a text beside them. The weights are written out in the model's type.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baton.errors import ModelLoadError
from baton.models.dummy_fills import ScaleFill, random_bits, spread_of
from baton.models.linear import ByModule, Stored, WeightForm
from baton.models.module_rules import QuantizedFields
from baton.models.weight_only import Layout, Values, WeightOnlyForm, tensors_nbytes

BLOCK = 64
"""Weights under one scale."""
SCALES = 256
"""Scales under one scale of theirs."""
TEXT_NBYTES = 512
"""Room for the text about one module: 77 to 170 bytes."""


@dataclass(frozen=True, slots=True)
class FourBits(WeightOnlyForm):
    """NF4 or FP4."""

    table: str  # "nf4" or "fp4"
    is_double: bool
    source: str

    def stored(self, num_outputs: int, num_inputs: int) -> Sequence[Stored]:
        count = num_outputs * num_inputs
        if count % (2 * BLOCK):
            raise ModelLoadError(
                f"{self.source}: blocks of {BLOCK} weights do not divide a layer of {num_outputs} x {num_inputs}. Take the "
                "checkpoint of 16 bits, and --quantization int4."
            )
        scales = count // BLOCK
        found = [
            Stored("weight", (count // 2, 1), 0, None, torch.uint8, random_bits),
            Stored("weight.quant_map", (16,), dtype=torch.float32, fill=_spread_evenly),
            Stored(
                f"weight.quant_state.bitsandbytes__{self.table}",
                (TEXT_NBYTES,),
                dtype=torch.uint8,
                fill="zeros",
                is_text=True,
            ),
        ]
        if not self.is_double:
            return (*found, Stored("weight.absmax", (scales,), 0, dtype=torch.float32, fill=ScaleFill(0.6)))
        return (
            *found,
            Stored("weight.absmax", (scales,), 0, dtype=torch.uint8, fill="ones"),
            Stored("weight.nested_absmax", (-(-scales // SCALES),), 0, dtype=torch.float32, fill=ScaleFill(0.6)),
            Stored("weight.nested_quant_map", (256,), dtype=torch.float32, fill=_spread_evenly),
        )

    def layout(self, tensors: Mapping[str, Tensor]) -> Layout:
        # Only what is written out is counted, so all weights may be of one output.
        count = 2 * len(tensors["weight"])
        return Layout(1, count, 1, tensors_nbytes(*tensors.values()), torch.float32)

    def values(self, tensors: Mapping[str, Tensor], sizes: Sequence[int]) -> Values:
        num_outputs, count = sum(sizes), 2 * len(tensors["weight"])
        num_inputs = count // num_outputs
        parts, at = [], 0
        for module, size in enumerate(sizes):
            num_bytes = size * num_inputs // 2
            packed = tensors["weight"][at : at + num_bytes].view(-1)
            codes = torch.stack([packed >> 4, packed & 15], -1).view(-1)
            values = tensors["weight.quant_map"][module][codes.int()].view(-1, BLOCK)
            parts.append((values * self._scales(tensors, module, sizes, num_inputs)[:, None]).view(size, num_inputs))
            at += num_bytes
        return Values(torch.cat(parts), torch.ones(num_outputs, 1, device=packed.device))

    def _scales(self, tensors: Mapping[str, Tensor], module: int, sizes: Sequence[int], num_inputs: int) -> Tensor:
        """Return the scales of one module's blocks."""
        counts = [size * num_inputs // BLOCK for size in sizes]
        scales = torch.split(tensors["weight.absmax"], counts)[module]
        if not self.is_double:
            return scales
        nested = torch.split(tensors["weight.nested_absmax"], [-(-count // SCALES) for count in counts])[module]
        scales = tensors["weight.nested_quant_map"][module][scales.int()]
        text = tensors[f"weight.quant_state.bitsandbytes__{self.table}"][module]
        return scales * nested.repeat_interleave(SCALES)[: len(scales)] + self._mean(text)

    def _mean(self, text: Tensor) -> float:
        written = bytes(text.tolist()).rstrip(b"\0")
        if not written:  # random weights
            return 0.0
        try:
            said = json.loads(written)
            mean, block, of_scales = float(said["nested_offset"]), said["blocksize"], said["nested_blocksize"]
        except (ValueError, KeyError, TypeError):
            raise ModelLoadError(
                f"{self.source}: quant_state={written[:60]!r} does not say how scales are quantized. Fetch the checkpoint again."
            ) from None
        if (block, of_scales) != (BLOCK, SCALES):
            raise ModelLoadError(
                f"{self.source}: blocksize={block} and nested_blocksize={of_scales} are not served, {BLOCK} and {SCALES} are."
            )
        return mean


def _spread_evenly(tensor: Tensor, std: float, generator: torch.Generator | None) -> None:
    tensor.copy_(torch.linspace(-1, 1, tensor.shape[-1], device=tensor.device).expand_as(tensor))


@dataclass(frozen=True, slots=True)
class EightBits(WeightOnlyForm):
    """int8: the largest weight of an output is 127 of `SCB`."""

    def stored(self, num_outputs: int, num_inputs: int) -> Sequence[Stored]:
        return (
            Stored("weight", (num_outputs, num_inputs), 0, 1, torch.int8, random_bits),
            Stored("SCB", (num_outputs,), 0, fill=ScaleFill(spread_of(8) / 127), kept=torch.float32),
            Stored("weight_format", (), dtype=torch.uint8, fill="zeros", kept=torch.uint8, optional=True),
        )

    def layout(self, tensors: Mapping[str, Tensor]) -> Layout:
        num_outputs, num_inputs = tensors["weight"].shape
        return Layout(num_outputs, num_inputs, 1, tensors_nbytes(*tensors.values()), torch.int8)

    def values(self, tensors: Mapping[str, Tensor], sizes: Sequence[int]) -> Values:
        return Values(tensors["weight"], tensors["SCB"].view(-1, 1) / 127)


def read(described: QuantizedFields) -> WeightForm | ByModule:
    """Read what transformers writes of bitsandbytes."""
    fields = described.fields
    kept = fields.raw.get("llm_int8_skip_modules")
    if fields.flag("load_in_8bit", False):
        return described.unless(kept, EightBits())
    if not fields.flag("load_in_4bit", False):
        raise fields.refusal("load_in_4bit", False, "one of load_in_4bit and load_in_8bit must be true")
    table = fields.choice("bnb_4bit_quant_type", allowed=("nf4", "fp4"), default="fp4")
    form = FourBits(table, fields.flag("bnb_4bit_use_double_quant", False), fields.source)
    return described.unless(kept, form)
