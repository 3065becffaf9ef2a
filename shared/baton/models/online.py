"""Weights of 16 bits made few while they are read: `--quantization`. A weight is never on the device whole.

int4: groups of 128 inputs (or fewer, where 128 does not divide them), symmetric; int8: one scale an output, the weight alone;
fp8: one scale an output, and activations scaled row by row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from baton.errors import ModelLoadError
from baton.kernels.moe_weights import Swiglu
from baton.models.dummy_fills import ScaleFill, random_bits, spread_of
from baton.models.fp8 import Fp8Linear
from baton.models.linear import Experts, ExpertTensors, Linear, Stored, WeightForm
from baton.models.ops import Ops
from baton.models.weight_only import Layout, Values, WeightOnlyForm, WeightOnlyLinear, tensors_nbytes

METHODS = ("fp8", "int8", "int4")
_GROUPS = (128, 64, 32)
FP8_LARGEST = 448.0


@dataclass(frozen=True, slots=True)
class RowEncoding:
    """One output's weights by one scale, or by one of each group of inputs."""

    method: str
    scale_dtype: torch.dtype

    def group(self, num_inputs: int) -> int:
        if self.method != "int4":
            return num_inputs
        # Kernels read two groups at once.
        fitting = [group for step in (2, 1) for group in _GROUPS if num_inputs % (step * group) == 0]
        return fitting[0] if fitting else num_inputs

    def kept(self, num_outputs: int, num_inputs: int) -> Sequence[Stored]:
        stored, spread = {
            "fp8": (torch.float8_e4m3fn, 1.0),
            "int8": (torch.int8, spread_of(8)),
            "int4": (torch.uint8, spread_of(4)),
        }[self.method]
        if self.method == "int4" and num_inputs % 2:
            raise ModelLoadError(f"quantization=int4 needs layers of an even number of inputs; one has {num_inputs}.")
        width = num_inputs // 2 if self.method == "int4" else num_inputs
        groups = num_inputs // self.group(num_inputs)
        return (
            Stored("values", (num_outputs, width), 0, 1, stored, random_bits),
            Stored("scales", (num_outputs, groups), 0, 1, self.scale_dtype, ScaleFill(spread)),
        )

    def encode(self, rows: Tensor) -> Sequence[Tensor]:
        num_rows, num_inputs = rows.shape
        groups = rows.float().view(num_rows, -1, self.group(num_inputs))
        largest = {"fp8": FP8_LARGEST, "int8": 127.0, "int4": 7.5}[self.method]
        # Rounded to the type that it is kept in first, so that the codes are of the scale that they will have.
        scales = (groups.abs().amax(-1) / largest).clamp_(min=1e-12).to(self.scale_dtype)
        values = (groups / scales.float()[:, :, None]).view(num_rows, num_inputs)
        if self.method == "fp8":
            return values.clamp_(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn), scales
        if self.method == "int8":
            return values.round_().clamp_(-127, 127).to(torch.int8), scales
        codes = (values.round_().clamp_(-8, 7) + 8).to(torch.uint8)
        return codes[:, ::2] | codes[:, 1::2] << 4, scales


@dataclass(frozen=True, slots=True)
class Online(WeightOnlyForm):
    """A plain form, whose weights are encoded."""

    plain: WeightForm
    method: str
    scale_dtype: torch.dtype

    def stored(self, num_outputs: int, num_inputs: int) -> Sequence[Stored]:
        encoding = RowEncoding(self.method, torch.float32 if self.method == "fp8" else self.scale_dtype)
        return [replace(stored, encoding=encoding) for stored in self.plain.stored(num_outputs, num_inputs)]

    def linear(
        self, tensors: Mapping[str, Tensor], bias: Tensor | None, sizes: Sequence[int], ops: Ops, dtype: torch.dtype
    ) -> Linear:
        kind = Fp8Linear if self.method == "fp8" else WeightOnlyLinear
        return kind(lambda: self.values(tensors, sizes), self.layout(tensors), bias, ops, dtype)

    def layout(self, tensors: Mapping[str, Tensor]) -> Layout:
        values, scales = tensors["values"], tensors["scales"]
        return Layout(
            len(values),
            values.shape[1] * (2 if self.method == "int4" else 1),
            scales.shape[1],
            tensors_nbytes(values, scales),
            values.dtype,
            scales.element_size(),
        )

    def values(self, tensors: Mapping[str, Tensor], sizes: Sequence[int]) -> Values:
        values, scales = tensors["values"], tensors["scales"]
        if self.method == "int4":
            values = torch.stack([values & 15, values >> 4], -1).view(len(values), -1)
        return Values(values, scales)

    def experts(self, up: ExpertTensors, down: ExpertTensors, gate: Swiglu, ops: Ops, dtype: torch.dtype) -> Experts:
        return self.plain.experts(up, down, gate, ops, dtype)
