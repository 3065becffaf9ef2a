"""The feed-forward of a mixture of experts: each token's output is the weighted sum of those of its chosen experts.

y[t] = sum over j of weights[t, j] * down[e](gate(up[e](x[t]))), e = chosen[t, j]. x [tokens, hidden], chosen and weights
[tokens, k]; up [experts, 2 * inner, hidden], the gate's rows first; down [experts, hidden, inner]; biases one dimension less.

On a CPU a loop over the experts that a step touches, each with its tokens side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
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


Multiply = Callable[[Tensor, int], Tensor]
"""Multiply rows by an expert's matrix."""


def moe_loop(x: Tensor, chosen: Tensor, weights: Tensor, up: Multiply, down: Multiply, gate: Swiglu) -> Tensor:
    """Compute expert after expert by these products, whatever form the weights have; sums are in fp32."""
    num_tokens, num_chosen = chosen.shape
    if num_tokens == 0:
        return torch.empty_like(x)
    pairs = chosen.flatten()  # one for each token and expert of it
    order = pairs.argsort(stable=True)
    rows = x[order // num_chosen]
    results, begin = [], 0
    for expert, count in enumerate(torch.bincount(pairs).tolist()):
        if count:
            results.append(down(gate(up(rows[begin : begin + count], expert)), expert))
            begin += count
    y = torch.empty(num_tokens * num_chosen, results[0].shape[1], dtype=torch.float32, device=x.device)
    y[order] = torch.cat(results).float()
    return torch.bmm(weights[:, None], y.view(num_tokens, num_chosen, -1)).squeeze(1).to(x.dtype)


def moe_reference(x: Tensor, chosen: Tensor, weights: Tensor, experts: ExpertWeights, gate: Swiglu = SILU) -> Tensor:
    """Compute in plain torch."""
    up, down, up_bias, down_bias = experts
    return moe_loop(
        x,
        chosen,
        weights,
        lambda rows, e: F.linear(rows, up[e], None if up_bias is None else up_bias[e]),
        lambda rows, e: F.linear(rows, down[e], None if down_bias is None else down_bias[e]),
        gate,
    )


def moe(x: Tensor, chosen: Tensor, weights: Tensor, experts: ExpertWeights, gate: Swiglu = SILU) -> Tensor:
    """Compute [tokens, hidden] in x's type; chosen [tokens, k] int32, weights [tokens, k] fp32."""
    return moe_reference(x, chosen, weights, experts, gate)


def invariant_moe(x: Tensor, chosen: Tensor, weights: Tensor, experts: ExpertWeights, gate: Swiglu = SILU) -> Tensor:
    """Compute the same so that a token's result depends on that token alone, bit for bit."""
    rows = (slice(at, at + 1) for at in range(len(x)))
    return torch.cat([moe_reference(x[row], chosen[row], weights[row], experts, gate) for row in rows])
