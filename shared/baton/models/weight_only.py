"""Linear layers whose weight alone has few bits: each form says what its tensors stand for, and here it is multiplied.

A GPU keeps the bits, laid out for its kernels. A CPU writes the weight out once, in the model's type, where its products are
fastest: torch's own products of packed weights take 20 to 80 times as long in fp32. So does a GPU with a shape that the
kernels do not take.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baton.kernels.fp8_linear import multiplies_fp8
from baton.kernels.linear import linear
from baton.kernels.moe_weights import ExpertWeights, Swiglu
from baton.kernels.packed_weight import PackedWeight, pack_weight, part_of
from baton.kernels.weight_only_linear import weight_only_linear
from baton.models.dense import DenseExperts, DenseLinear
from baton.models.linear import Experts, ExpertTensors, Linear, Stored
from baton.models.ops import Ops
from baton.models.step import Step


@dataclass(frozen=True, slots=True)
class Values:
    """What the tensors of a weight stand for: scale (value - zero), in groups of neighbouring columns."""

    values: Tensor  # [outputs, inputs]: codes of up to four bits as uint8, int8 or float8_e4m3fn
    scales: Tensor  # [outputs, groups]
    zeros: Tensor | None = None  # [outputs, groups]; None: 8 of codes, else 0
    order: Tensor | None = None  # the input of each column; None: as they come

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Write the weight out, [outputs, inputs]."""
        # A few rows at a time, or the fp32 on the way would be several times the layer.
        rows = max(1, (1 << 22) // self.values.shape[1])
        dense = torch.empty(self.values.shape, dtype=dtype, device=self.values.device)
        for start in range(0, len(dense), rows):
            of = slice(start, start + rows)
            dense[of] = self._rows(of).to(dtype)
        if self.order is None:
            return dense
        return dense[:, torch.argsort(self.order)]

    def _rows(self, of: slice) -> Tensor:
        group = self.values.shape[1] // self.scales.shape[1]
        values = self.values[of].float()
        if self.zeros is not None:
            values -= self.zeros[of].float().repeat_interleave(group, 1)
        elif self.values.dtype == torch.uint8:
            values -= 8.0
        return values * self.scales[of].float().repeat_interleave(group, 1)


@dataclass(frozen=True, slots=True)
class Layout:
    """What is known of a weight before it is read."""

    num_outputs: int
    num_inputs: int
    num_groups: int  # of a row
    nbytes: int  # of the tensors that are read
    stored: torch.dtype  # of the values: uint8 (up to four bits), int8 or float8_e4m3fn; float32: written out anywhere
    scale_nbytes: int = 4  # of one scale, with its zero

    def stays_packed(self, device: torch.device) -> bool:
        """Whether a device multiplies the bits as they are."""
        if device.type != "cuda" or self.num_inputs % self.num_groups or self.stored == torch.float32:
            return False
        if self.stored == torch.float8_e4m3fn and not multiplies_fp8(device):
            return False
        group, is_int4 = self.num_inputs // self.num_groups, self.stored == torch.uint8
        return part_of(self.num_inputs, group, is_int4=is_int4) is not None

    def settled_nbytes(self, dtype: torch.dtype, *, packed: bool) -> int:
        """Count the bytes of what is kept."""
        num_values = self.num_outputs * self.num_inputs
        if not packed:
            return num_values * dtype.itemsize
        values = num_values // 2 if self.stored == torch.uint8 else num_values
        return values + self.num_outputs * self.num_groups * self.scale_nbytes


class WeightOnlyLinear(Linear):
    """Multiply by a weight of few bits.

    Args:
        read: makes the values of the tensors that were loaded; called once, by `settle`, which forgets it and them.
    """

    def __init__(
        self, read: Callable[[], Values], layout: Layout, bias: Tensor | None, ops: Ops, dtype: torch.dtype
    ) -> None:
        self._read: Callable[[], Values] | None = read
        self._layout = layout
        self._bias = bias
        self._ops = ops
        self._dtype = dtype
        self._order: Tensor | None = None
        self._packed: PackedWeight | None = None
        self._dense: Linear | None = None

    def __call__(self, x: Tensor, step: Step | None = None) -> Tensor:
        return self._multiply(x, None)

    def in_fp32(self, x: Tensor) -> Tensor:
        return self._multiply(x, torch.float32)

    def _multiply(self, x: Tensor, out_dtype: torch.dtype | None) -> Tensor:
        if self._dense is not None:
            return self._dense(x) if out_dtype is None else self._dense.in_fp32(x)
        assert self._packed is not None
        if self._order is not None:
            x = x[:, self._order]
        return self._packed_product(x, self._packed, self._bias, out_dtype)

    def _packed_product(
        self, x: Tensor, weight: PackedWeight, bias: Tensor | None, out_dtype: torch.dtype | None
    ) -> Tensor:
        return weight_only_linear(x, weight, bias, out_dtype)

    def settle(self) -> None:
        """Pack the weight for the device's kernels, or write it out."""
        assert self._read is not None
        values, self._read = self._read(), None
        if self._stays_packed(values.values.device):
            self._packed = pack_weight(values.values, values.scales, values.zeros)
            self._order = values.order
        else:
            self._dense = DenseLinear(values.dense(self._dtype), self._bias, self._ops.linear)
            self._dense.settle()

    def _stays_packed(self, device: torch.device) -> bool:
        # Products of packed weights depend on the number of rows, so where they must not, weights are written out.
        return self._ops.linear is linear and self._layout.stays_packed(device)

    def growth(self, device: torch.device) -> int:
        settled = self._layout.settled_nbytes(self._dtype, packed=self._stays_packed(device))
        return settled - self._layout.nbytes


class WeightOnlyForm(ABC):
    """A form whose tensors stand for values and scales; what multiplies by them is the same for all."""

    __slots__ = ()

    @abstractmethod
    def stored(self, num_outputs: int, num_inputs: int) -> Sequence[Stored]:
        """Describe the tensors of a module."""

    @abstractmethod
    def layout(self, tensors: Mapping[str, Tensor]) -> Layout:
        """Say what is known of a layer's tensors before they are read."""

    @abstractmethod
    def values(self, tensors: Mapping[str, Tensor], sizes: Sequence[int]) -> Values:
        """Say what a layer's tensors stand for."""

    def linear(
        self, tensors: Mapping[str, Tensor], bias: Tensor | None, sizes: Sequence[int], ops: Ops, dtype: torch.dtype
    ) -> Linear:
        """Make the layer."""
        return WeightOnlyLinear(lambda: self.values(tensors, sizes), self.layout(tensors), bias, ops, dtype)

    def experts(self, up: ExpertTensors, down: ExpertTensors, gate: Swiglu, ops: Ops, dtype: torch.dtype) -> Experts:
        """Make the experts, whose weights are written out."""
        return WrittenOutExperts(self, up, down, gate, ops, dtype)


class WrittenOutExperts(Experts):
    """Experts whose weights are written out in the model's type, one after the other."""

    def __init__(
        self, form: WeightOnlyForm, up: ExpertTensors, down: ExpertTensors, gate: Swiglu, ops: Ops, dtype: torch.dtype
    ) -> None:
        self._form, self._gate, self._ops, self._dtype = form, gate, ops, dtype
        self._stacks: tuple[ExpertTensors, ExpertTensors] | None = (up, down)
        self._dense: DenseExperts | None = None

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        assert self._dense is not None
        return self._dense(x, chosen, weights)

    def settle(self) -> None:
        """Write the weights out; what was read is given back."""
        assert self._stacks is not None
        (up, down), self._stacks = self._stacks, None
        weights = ExpertWeights(self._written_out(up, 2), self._written_out(down, 1), up.bias, down.bias)
        self._dense = DenseExperts(weights, self._gate, self._ops.experts)
        self._dense.settle()

    def growth(self, device: torch.device) -> int:
        assert self._stacks is not None
        total = 0
        for stack in self._stacks:
            layout = self._form.layout(self._of_expert(stack, 0))
            num_experts = len(next(iter(stack.tensors.values())))
            total += num_experts * (layout.num_outputs * layout.num_inputs * self._dtype.itemsize - layout.nbytes)
        return total

    def _of_expert(self, stack: ExpertTensors, expert: int) -> dict[str, Tensor]:
        """Return one expert's tensors, dimensions as stored."""
        return {
            name: tensor[expert] if (dim := self._out_dim(name)) is None else tensor[expert].movedim(0, dim)
            for name, tensor in stack.tensors.items()
        }

    def _out_dim(self, suffix: str) -> int | None:
        return next(stored.out_dim for stored in self._form.stored(1024, 1024) if stored.suffix == suffix)

    def _written_out(self, stack: ExpertTensors, num_modules: int) -> Tensor:
        parts: list[Tensor] = []
        for expert in range(len(next(iter(stack.tensors.values())))):
            tensors = self._of_expert(stack, expert)
            num_outputs = self._form.layout(tensors).num_outputs
            values = self._form.values(tensors, [num_outputs // num_modules] * num_modules)
            parts.append(values.dense(self._dtype))
        return torch.stack(parts)


def tensors_nbytes(*tensors: Tensor) -> int:
    """Count the bytes of tensors, on the meta device too."""
    return sum(tensor.nbytes for tensor in tensors)
