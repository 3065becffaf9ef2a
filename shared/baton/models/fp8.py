"""Weights of eight-bit floats (e4m3): one scale a tensor, an output, or a block of 128 x 128; activations are scaled too.

`quant_method: fp8` is read here, as DeepSeek, Qwen and vLLM publish it. Where a device has no products of such floats they are
written out in the model's type. Few rows are multiplied by the weight unpacked, exactly and at the speed of reading it; many rows
are scaled to eight bits, one scale a row (or one a row and 128 inputs, where the weight has blocks), or by the checkpoint's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baton.kernels.fp8_linear import fp8_linear, takes_fp8
from baton.kernels.packed_weight import PackedWeight
from baton.kernels.weight_only_linear import weight_only_linear
from baton.models.dummy_fills import ScaleFill, random_bits
from baton.models.linear import ByModule, Linear, Stored, WeightForm
from baton.models.module_rules import QuantizedFields
from baton.models.ops import Ops
from baton.models.weight_only import Layout, Values, WeightOnlyForm, WeightOnlyLinear, tensors_nbytes


class Fp8Linear(WeightOnlyLinear):
    """Multiply by a weight of eight-bit floats, many rows in eight bits."""

    def __init__(
        self,
        read: Callable[[], Values],
        layout: Layout,
        bias: Tensor | None,
        ops: Ops,
        dtype: torch.dtype,
        x_scale: Callable[[], Tensor] | None = None,
    ) -> None:
        super().__init__(read, layout, bias, ops, dtype)
        self._read_x_scale = x_scale
        self._x_scale: Tensor | None = None

    def settle(self) -> None:
        """Pack the weight, and keep the checkpoint's scale of activations where there is one."""
        super().settle()
        if self._read_x_scale is not None and self._packed is not None:
            self._x_scale, self._read_x_scale = self._read_x_scale(), None

    def _packed_product(
        self, x: Tensor, weight: PackedWeight, bias: Tensor | None, out_dtype: torch.dtype | None
    ) -> Tensor:
        if takes_fp8(x, weight):
            return fp8_linear(x, weight, bias, out_dtype, self._x_scale)
        return weight_only_linear(x, weight, bias, out_dtype)


@dataclass(frozen=True, slots=True)
class Fp8(WeightOnlyForm):
    """One module's form."""

    block: tuple[int, int] | None  # outputs and inputs that share a scale
    per_output: bool  # else, without blocks, one scale a module
    has_x_scale: bool
    scale_name: str  # of the suffix
    source: str

    def stored(self, num_outputs: int, num_inputs: int) -> Sequence[Stored]:
        weight = Stored("weight", (num_outputs, num_inputs), 0, 1, torch.float8_e4m3fn, random_bits)
        fill = ScaleFill(1.0)
        if self.block:
            shape = -(-num_outputs // self.block[0]), -(-num_inputs // self.block[1])
            scale = Stored(self.scale_name, shape, 0, 1, fill=fill, kept=torch.float32)
        elif self.per_output:
            scale = Stored(self.scale_name, (num_outputs, 1), 0, fill=fill, kept=torch.float32)
        else:
            scale = Stored(self.scale_name, (), fill=fill, kept=torch.float32)
        if not self.has_x_scale:
            return weight, scale
        return weight, scale, Stored("input_scale", (), fill=ScaleFill(0.1), kept=torch.float32)

    def linear(
        self, tensors: Mapping[str, Tensor], bias: Tensor | None, sizes: Sequence[int], ops: Ops, dtype: torch.dtype
    ) -> Linear:
        x_scale = (lambda: tensors["input_scale"].amax()) if self.has_x_scale else None
        return Fp8Linear(lambda: self.values(tensors, sizes), self.layout(tensors), bias, ops, dtype, x_scale)

    def layout(self, tensors: Mapping[str, Tensor]) -> Layout:
        num_outputs, num_inputs = tensors["weight"].shape
        groups = 1
        if self.block:
            # Blocks that end within the inputs are not of the kernels.
            groups = num_inputs if num_inputs % self.block[1] else num_inputs // self.block[1]
        return Layout(num_outputs, num_inputs, groups, tensors_nbytes(*tensors.values()), torch.float8_e4m3fn)

    def values(self, tensors: Mapping[str, Tensor], sizes: Sequence[int]) -> Values:
        weight, scale = tensors["weight"], tensors[self.scale_name]
        if self.block:
            return Values(weight, self._of_blocks(scale, weight, sizes))
        if self.per_output:
            return Values(weight, scale)
        of_modules = torch.tensor(sizes, device=scale.device)
        return Values(weight, scale.view(-1, 1).repeat_interleave(of_modules, 0, output_size=len(weight)))

    def _of_blocks(self, scale: Tensor, weight: Tensor, sizes: Sequence[int]) -> Tensor:
        """Give each output the scales of its block: a module's last block may be cut."""
        assert self.block is not None
        rows, at = [], 0
        for size in sizes:
            num_blocks = -(-size // self.block[0])
            rows.append(scale[at : at + num_blocks].repeat_interleave(self.block[0], 0)[:size])
            at += num_blocks
        scales = torch.cat(rows)
        if weight.shape[1] % self.block[1]:
            scales = scales.repeat_interleave(self.block[1], 1)[:, : weight.shape[1]]
        return scales.contiguous()


def read(described: QuantizedFields) -> WeightForm | ByModule:
    """Read `quant_method: fp8`."""
    fields = described.fields
    fields.choice("fmt", "weight_format", allowed=("e4m3", "float8_e4m3fn"), default="e4m3")
    scheme = fields.choice("activation_scheme", allowed=("dynamic", "static"), default="dynamic")
    block = block_of(described, "weight_block_size", fields.raw.get("weight_block_size"))
    if block and scheme == "static":
        raise fields.refusal("activation_scheme", scheme, "with weight_block_size it must be dynamic")
    form = Fp8(block, False, scheme == "static", "weight_scale_inv" if block else "weight_scale", fields.source)
    kept = fields.raw.get("modules_to_not_convert") or fields.raw.get("ignored_layers")
    return described.unless(kept, form)


def block_of(described: QuantizedFields, name: str, value: object) -> tuple[int, int] | None:
    """Check the size of a block.

    Raises:
        ModelLoadError: it is not two whole numbers.
    """
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(each, int) and each > 0 for each in value):
        raise described.fields.refusal(name, value, "it must be two whole numbers above 0, as [128, 128]")
    return value[0], value[1]
