"""Weights as they were trained: one matrix [outputs, inputs] a module, or its transpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baton.kernels.linear import linear, linear_packed, pack_weight, packs
from baton.models.linear import Linear, Stored
from baton.models.ops import LinearOp, Ops
from baton.models.step import Step


class DenseLinear(Linear):
    """Multiply by a matrix [outputs, inputs]."""

    def __init__(self, weight: Tensor, bias: Tensor | None, multiply: LinearOp) -> None:
        self._weight = weight
        self._bias = bias
        self._multiply = multiply

    def __call__(self, x: Tensor, step: Step | None = None) -> Tensor:
        return self._multiply(x, self._weight, self._bias, None)

    def in_fp32(self, x: Tensor) -> Tensor:
        return self._multiply(x, self._weight, self._bias, torch.float32)

    def settle(self) -> None:
        """Replace the weight by its packed form, where the device has a faster one."""
        if self._multiply is linear and packs(self._weight):
            self._weight = pack_weight(self._weight)
            self._multiply = linear_packed


@dataclass(frozen=True, slots=True)
class Dense:
    """The form without quantization."""

    transposed: bool = False  # the checkpoint has [inputs, outputs]

    def stored(self, num_outputs: int, num_inputs: int) -> Sequence[Stored]:
        if self.transposed:
            return (Stored("weight", (num_inputs, num_outputs), out_dim=1, in_dim=0),)
        return (Stored("weight", (num_outputs, num_inputs), out_dim=0, in_dim=1),)

    def linear(self, tensors: Mapping[str, Tensor], bias: Tensor | None, sizes: Sequence[int], ops: Ops) -> Linear:
        weight = tensors["weight"]
        return DenseLinear(weight.t() if self.transposed else weight, bias, ops.linear)


DENSE = Dense()
CONV1D = Dense(transposed=True)
