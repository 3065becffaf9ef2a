"""GPTQ's checkpoints: words of codes along the inputs, one scale and one zero a group; `g_idx` says an input's group.

Version 1 (AutoGPTQ's, `checkpoint_format: gptq`) stores each zero less one; version 2 (`gptq_v2`) as it is. With `desc_act` groups
are of inputs that were quantized one after the other, so columns are put into that order once, and x's at each product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from baton.errors import ModelLoadError
from baton.models.dummy_fills import InOrder, ScaleFill, random_bits, repeated, spread_of
from baton.models.fields import Fields
from baton.models.integer_codes import as_int8, order_of_groups, unpack, without_middle
from baton.models.linear import ByModule, Stored, WeightForm
from baton.models.module_rules import QuantizedFields
from baton.models.weight_only import Layout, Values, WeightOnlyForm, tensors_nbytes

BITS = (2, 3, 4, 8)


@dataclass(frozen=True, slots=True)
class Gptq(WeightOnlyForm):
    """One module's form."""

    bits: int
    group: int | None  # inputs; None: all
    is_ordered: bool  # groups are not of neighbours
    is_symmetric: bool
    zeros_less_one: bool
    scale_dtype: torch.dtype
    source: str

    def stored(self, num_outputs: int, num_inputs: int) -> Sequence[Stored]:
        group = self.group or num_inputs
        for name, size in (("inputs", num_inputs), ("outputs", num_outputs)):
            if size * self.bits % 32:
                raise ModelLoadError(
                    f"{self.source}: bits={self.bits}, and a layer of {size} {name} does not fill words of 32 bits. "
                    "Take the checkpoint of 16 bits, and --quantization int4 or int8."
                )
        if num_inputs % group:
            raise ModelLoadError(
                f"{self.source}: group_size={group} does not divide the {num_inputs} inputs of a layer. "
                "Correct config.json, or take the checkpoint of 16 bits and --quantization int4."
            )
        groups = num_inputs // group
        of_groups = 0 if not self.is_ordered and groups > 1 else None
        zero = (1 << self.bits - 1) - self.zeros_less_one
        return (
            Stored("qweight", (num_inputs * self.bits // 32, num_outputs), 1, 0, dtype=torch.int32, fill=random_bits),
            Stored(
                "qzeros",
                (groups, num_outputs * self.bits // 32),
                1,
                of_groups,
                dtype=torch.int32,
                fill=repeated(zero, self.bits) if self.bits != 3 else "zeros",
            ),
            Stored(
                "scales",
                (groups, num_outputs),
                1,
                of_groups,
                fill=ScaleFill(spread_of(self.bits)),
                kept=self.scale_dtype,
            ),
            Stored("g_idx", (num_inputs,), None, 0, torch.int32, fill=InOrder(group), optional=True),
        )

    def layout(self, tensors: Mapping[str, Tensor]) -> Layout:
        num_groups, num_outputs = tensors["scales"].shape
        return Layout(
            num_outputs,
            tensors["g_idx"].shape[1],
            num_groups,
            tensors_nbytes(*tensors.values()),
            torch.int8 if self.bits == 8 else torch.uint8,
            self.scale_dtype.itemsize + (not self.is_symmetric),
        )

    def values(self, tensors: Mapping[str, Tensor], sizes: Sequence[int]) -> Values:
        codes = unpack(tensors["qweight"].t(), self.bits)
        # A stored zero of all ones is what 0 less one became.
        zeros = (unpack(tensors["qzeros"], self.bits) + self.zeros_less_one & (1 << self.bits) - 1).t()
        scales, order = tensors["scales"].t().contiguous(), None
        if self.is_ordered:
            order = order_of_groups(tensors["g_idx"], codes.shape[1] // scales.shape[1], self.source)
            codes = codes if order is None else codes[:, order]
        if self.bits == 8:
            return Values(as_int8(codes), scales, without_middle(as_int8(zeros), 0), order)
        # Codes of fewer bits are put into the middle of those of four.
        shift = 8 - (1 << self.bits - 1)
        return Values(codes + shift, scales, without_middle(zeros + shift, 8), order)


def read(described: QuantizedFields) -> WeightForm | ByModule:
    """Read what AutoGPTQ, GPTQModel and optimum write."""
    fields, source = described.fields, described.fields.source
    if fields.flag("lm_head", False):
        raise fields.refusal("lm_head", True, "output layers are not quantized here", "Take another checkpoint.")
    layout = fields.choice("checkpoint_format", allowed=("gptq", "gptq_v2"), default="gptq")
    bits = _bits(fields)
    form = Gptq(
        bits,
        _group(fields),
        fields.flag("desc_act", False),
        fields.flag("sym", True),
        layout == "gptq",
        described.dtype,
        source,
    )
    rules = fields.raw.get("dynamic") or {}
    if not isinstance(rules, Mapping) or not all(isinstance(each, Mapping) for each in rules.values()):
        raise fields.refusal("dynamic", rules, "it must map patterns to settings")
    compiled = {
        pattern: described.compiled("dynamic", pattern.removeprefix("-:").removeprefix("+:")) for pattern in rules
    }
    if not rules:
        return form

    def form_of(module: str) -> WeightForm:
        for pattern, changes in rules.items():
            if any(compiled[pattern].match(name) for name in described.names(module)):
                if pattern.startswith("-:"):
                    return described.plain
                own = Fields(changes, source)
                return replace(
                    form,
                    bits=_bits(own) if "bits" in changes else form.bits,
                    group=_group(own) if "group_size" in changes else form.group,
                    is_symmetric=own.flag("sym", form.is_symmetric),
                    is_ordered=own.flag("desc_act", form.is_ordered),
                )
        return form

    return ByModule(form_of, source)


def _bits(fields: Fields) -> int:
    bits = fields.integer("bits")
    if bits not in BITS:
        raise fields.refusal("bits", bits, f"GPTQ is served with {', '.join(map(str, BITS))}")
    return bits


def _group(fields: Fields) -> int | None:
    group = fields.raw.get("group_size", 128)
    return None if group == -1 else fields.integer("group_size", default=128)
