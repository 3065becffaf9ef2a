"""A weight of few bits, laid out for `weight_only_linear`: w[n, k] = scale[n, k / group] (code[n, k] - zero[n, k / group]).

Eight-bit numbers lie as they are, [outputs, inputs]. Of four-bit codes a byte has two that lie `part` inputs apart: of each
2 * part inputs the first half is in the low nibbles, the second in the high ones. So a tile of bytes becomes two tiles of
neighbouring inputs, without any exchange between threads, and each of them has one scale a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PARTS = (128, 64, 32)
"""Inputs of a tile with one scale a row: the longest first."""
MIDDLE = 8
"""What a four-bit code means zero by, where there are no zeros."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """The parts of a packed weight, on its device."""

    data: Tensor  # [outputs, inputs] int8 or float8_e4m3fn, or [outputs, inputs / 2] uint8
    scales: Tensor  # [outputs, groups]
    zeros: Tensor | None  # [outputs, groups], whole numbers
    part: int

    @property
    def is_int4(self) -> bool:
        return self.data.dtype == torch.uint8

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.data.shape[0], self.data.shape[1] * (2 if self.is_int4 else 1)

    @property
    def group(self) -> int:
        return self.shape[1] // self.scales.shape[1]

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.scales.nbytes + (0 if self.zeros is None else self.zeros.nbytes)


def part_of(num_inputs: int, group: int, *, is_int4: bool) -> int | None:
    """Choose how many inputs a tile has; None: the kernels do not take a weight of this shape."""
    step = 2 if is_int4 else 1
    return next((part for part in PARTS if num_inputs % (step * part) == 0 and group % part == 0), None)


def pack_weight(values: Tensor, scales: Tensor, zeros: Tensor | None = None) -> PackedWeight:
    """Lay out codes of four bits (uint8, 0 to 15), int8 or float8_e4m3fn values, [outputs, inputs].

    The inputs must divide as `part_of` says.
    """
    num_outputs, num_inputs = values.shape
    is_int4 = values.dtype == torch.uint8
    part = part_of(num_inputs, num_inputs // scales.shape[1], is_int4=is_int4)
    assert part is not None
    if is_int4:
        pairs = values.view(num_outputs, -1, 2, part)
        values = (pairs[:, :, 0] | pairs[:, :, 1] << 4).view(num_outputs, -1)
    return PackedWeight(values.contiguous(), scales.contiguous(), None if zeros is None else zeros.contiguous(), part)


def unpack_values(weight: PackedWeight) -> Tensor:
    """Return the values, [outputs, inputs] fp32: codes less their zeros, without scales."""
    data = weight.data
    if weight.is_int4:
        pairs = data.view(len(data), -1, 1, weight.part)
        data = torch.cat([pairs & 15, pairs >> 4], 2).view(weight.shape)
    values = data.float()
    if weight.zeros is not None:
        return values - weight.zeros.float().repeat_interleave(weight.group, 1)
    return values - MIDDLE if weight.is_int4 else values


def dequantize_reference(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Return the weight, [outputs, inputs], rounded once."""
    return (unpack_values(weight) * weight.scales.float().repeat_interleave(weight.group, 1)).to(dtype)
