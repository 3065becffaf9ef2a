"""What the experts of a layer are to the operations: their matrices, and the gate between the two products."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from baton.kernels.silu_mul import silu_mul_reference


class Swiglu(NamedTuple):
    """The gate: g * sigmoid(alpha * g) * (u + shift), g and u held within the limit. As it stands it is SiLU(g) * u."""

    alpha: float = 1.0
    shift: float = 0.0
    limit: float = math.inf  # g from above, u from both sides

    def __call__(self, gate_up: Tensor) -> Tensor:
        """Gate [rows, 2 * inner] to [rows, inner] in plain torch."""
        if self == SILU:
            return silu_mul_reference(gate_up)
        gate, up = gate_up.chunk(2, -1)
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return (up + self.shift) * (gate * torch.sigmoid(gate * self.alpha))


SILU = Swiglu()


class ExpertWeights(NamedTuple):
    """All experts of a layer."""

    up: Tensor  # [experts, 2 * inner, hidden]
    down: Tensor  # [experts, hidden, inner]
    up_bias: Tensor | None = None  # [experts, 2 * inner]
    down_bias: Tensor | None = None  # [experts, hidden]
