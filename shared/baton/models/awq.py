"""AWQ's checkpoints (AutoAWQ's `gemm`): words of eight codes along the outputs, in an order of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baton.errors import ModelLoadError
from baton.models.dummy_fills import ScaleFill, random_bits, repeated, spread_of
from baton.models.integer_codes import unpack_awq
from baton.models.linear import ByModule, Stored, WeightForm
from baton.models.module_rules import QuantizedFields
from baton.models.weight_only import Layout, Values, WeightOnlyForm, tensors_nbytes


@dataclass(frozen=True, slots=True)
class Awq(WeightOnlyForm):
    """One module's form."""

    group: int | None
    has_zeros: bool
    scale_dtype: torch.dtype
    source: str

    def stored(self, num_outputs: int, num_inputs: int) -> Sequence[Stored]:
        group = self.group or num_inputs
        if num_outputs % 8 or num_inputs % group:
            raise ModelLoadError(
                f"{self.source}: group_size={group} must divide a layer's {num_inputs} inputs, and 8 its {num_outputs} "
                "outputs. Correct config.json, or take the checkpoint of 16 bits and --quantization int4."
            )
        groups = num_inputs // group
        in_dim = 0 if groups > 1 else None
        return (
            Stored("qweight", (num_inputs, num_outputs // 8), 1, 0, torch.int32, random_bits),
            Stored(
                "qzeros",
                (groups, num_outputs // 8),
                1,
                in_dim,
                torch.int32,
                repeated(8, 4),
                optional=not self.has_zeros,
            ),
            Stored("scales", (groups, num_outputs), 1, in_dim, fill=ScaleFill(spread_of(4)), kept=self.scale_dtype),
        )

    def layout(self, tensors: Mapping[str, Tensor]) -> Layout:
        num_groups, num_outputs = tensors["scales"].shape
        return Layout(
            num_outputs,
            len(tensors["qweight"]),
            num_groups,
            tensors_nbytes(*tensors.values()),
            torch.uint8,
            self.scale_dtype.itemsize + self.has_zeros,
        )

    def values(self, tensors: Mapping[str, Tensor], sizes: Sequence[int]) -> Values:
        codes = unpack_awq(tensors["qweight"]).t().contiguous()
        zeros = unpack_awq(tensors["qzeros"]).t() if self.has_zeros else None
        return Values(codes, tensors["scales"].t().contiguous(), zeros)


def read(described: QuantizedFields) -> WeightForm | ByModule:
    """Read what AutoAWQ and transformers write."""
    fields = described.fields
    if fields.integer("bits", "w_bit", default=4) != 4:
        raise fields.refusal("bits", fields.raw.get("bits"), "AWQ is served with 4")
    fields.choice("version", allowed=("gemm", "GEMM"), default="gemm")
    group = None if fields.raw.get("group_size") == -1 else fields.integer("group_size", "q_group_size", default=128)
    form = Awq(group, fields.flag("zero_point", True), described.dtype, fields.source)
    return described.unless(fields.raw.get("modules_to_not_convert"), form, anywhere=True)
