"""Weights as they were trained: one matrix [outputs, inputs] a module, or its transpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baton.kernels.linear import linear, linear_packed, pack_weight, packs
from baton.kernels.moe import moe, moe_loop
from baton.kernels.moe_weights import ExpertWeights, Swiglu
from baton.models.linear import Experts, ExpertTensors, Linear, Stored
from baton.models.ops import ExpertsOp, LinearOp, Ops
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


class DenseExperts(Experts):
    """Experts of matrices [experts, outputs, inputs]."""

    def __init__(self, weights: ExpertWeights, gate: Swiglu, compute: ExpertsOp) -> None:
        self._weights = weights
        self._gate = gate
        self._compute = compute
        self._packed: tuple[list[Tensor], list[Tensor]] | None = None  # of up and of down, by expert

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        if self._packed is None:
            return self._compute(x, chosen, weights, self._weights, self._gate)
        up, down = self._packed
        up_bias, down_bias = self._weights.up_bias, self._weights.down_bias
        return moe_loop(
            x,
            chosen,
            weights,
            lambda rows, e: linear_packed(rows, up[e], None if up_bias is None else up_bias[e]),
            lambda rows, e: linear_packed(rows, down[e], None if down_bias is None else down_bias[e]),
            self._gate,
        )

    def settle(self) -> None:
        """Replace the weights by their packed form, where the device has a faster one."""
        if self._compute is moe and packs(self._weights.up):
            up, down, *biases = self._weights
            self._packed = [pack_weight(each) for each in up], [pack_weight(each) for each in down]
            self._weights = ExpertWeights(up.new_empty(0), down.new_empty(0), *biases)


@dataclass(frozen=True, slots=True)
class Dense:
    """The form without quantization."""

    transposed: bool = False  # the checkpoint has [inputs, outputs]

    def stored(self, num_outputs: int, num_inputs: int) -> Sequence[Stored]:
        if self.transposed:
            return (Stored("weight", (num_inputs, num_outputs), out_dim=1, in_dim=0),)
        return (Stored("weight", (num_outputs, num_inputs), out_dim=0, in_dim=1),)

    def linear(
        self, tensors: Mapping[str, Tensor], bias: Tensor | None, sizes: Sequence[int], ops: Ops, dtype: torch.dtype
    ) -> Linear:
        weight = tensors["weight"]
        return DenseLinear(weight.t() if self.transposed else weight, bias, ops.linear)

    def experts(self, up: ExpertTensors, down: ExpertTensors, gate: Swiglu, ops: Ops, dtype: torch.dtype) -> Experts:
        weights = ExpertWeights(up.tensors["weight"], down.tensors["weight"], up.bias, down.bias)
        return DenseExperts(weights, gate, ops.experts)


DENSE = Dense()
CONV1D = Dense(transposed=True)
