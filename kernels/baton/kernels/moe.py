"""The feed-forward of a mixture of experts: each token's output is the weighted sum of those of its chosen experts.

y[t] = sum over j of weights[t, j] * down[e](gate(up[e](x[t]))), e = chosen[t, j]. x [tokens, hidden], chosen and weights
[tokens, k]; up [experts, 2 * inner, hidden], the gate's rows first; down [experts, hidden, inner]; biases one dimension less.

On a CPU a loop over the experts that a step touches, each with its tokens side by side. On a GPU one token is moe_rows.py's,
and more are moe_tiles.py's. Bound by reading the matrices of the experts that are touched, or by the matrix cores.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from baton.kernels.launch import on_triton
from baton.kernels.launch_table import launches_on
from baton.kernels.moe_rows import moe_row
from baton.kernels.moe_tiles import moe_tiles
from baton.kernels.moe_weights import SILU, ExpertWeights, Swiglu

Multiply = Callable[[Tensor, int], Tensor]
"""Multiply rows by an expert's matrix."""


def moe_loop(x: Tensor, chosen: Tensor, weights: Tensor, up: Multiply, down: Multiply, gate: Swiglu) -> Tensor:
    """Compute expert after expert by these products, whatever form the weights have; sums have the type of `weights`."""
    num_tokens, num_chosen = chosen.shape
    if num_tokens == 0:
        return torch.empty_like(x)
    if num_tokens == 1:  # nothing to sort
        results = [down(gate(up(x, expert)), expert) for expert in chosen[0].tolist()]
        return (weights @ torch.cat(results).to(weights.dtype)).to(x.dtype)
    pairs = chosen.flatten()  # one for each token and expert of it
    order = pairs.argsort(stable=True)
    rows = x[order // num_chosen]
    results, begin = [], 0
    for expert, count in enumerate(torch.bincount(pairs).tolist()):
        if count:
            results.append(down(gate(up(rows[begin : begin + count], expert)), expert))
            begin += count
    y = torch.empty(num_tokens * num_chosen, results[0].shape[1], dtype=weights.dtype, device=x.device)
    y[order] = torch.cat(results).to(y.dtype)
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
    if not on_triton(x, "moe") or not len(x):
        return moe_reference(x, chosen, weights, experts, gate)
    launch = launches_on(x.device).moe
    if len(x) == 1:
        return moe_row(x, chosen, weights, experts, gate, launch.row)
    return moe_tiles(x, chosen, weights, experts, gate, launch.tile_for(chosen.numel(), len(experts.up), x.dtype))


def run_every_launch(x: Tensor, chosen: Tensor, weights: Tensor, experts: ExpertWeights, gate: Swiglu = SILU) -> None:
    """Compute in every way that may be chosen for x's type, with few rows and with all."""
    if not on_triton(x, "moe"):
        return
    launch = launches_on(x.device).moe
    moe_row(x[:1], chosen[:1], weights[:1], experts, gate, launch.row)
    for tile in launch.tiles(x.dtype):
        for num_rows in (2, len(x)):
            moe_tiles(x[:num_rows], chosen[:num_rows], weights[:num_rows], experts, gate, tile)


def invariant_moe(x: Tensor, chosen: Tensor, weights: Tensor, experts: ExpertWeights, gate: Swiglu = SILU) -> Tensor:
    """Compute the same so that a token's result depends on that token alone, bit for bit: one tile for any number of rows."""
    if not len(x):
        return torch.empty_like(x)
    if on_triton(x):
        return moe_tiles(x, chosen, weights, experts, gate, launches_on(x.device).moe.invariant(x.dtype))
    rows = (slice(at, at + 1) for at in range(len(x)))
    return torch.cat([moe_reference(x[row], chosen[row], weights[row], experts, gate) for row in rows])
