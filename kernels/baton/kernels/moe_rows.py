"""The products of a mixture of experts for one token, as a decode step of one sequence has it (moe.py has the formula).

The token's experts are all different, so every matrix that it touches is read once and nothing is sorted. Products and sums on
the ordinary cores: a program of the first kernel computes a few gated numbers of one expert, one of the second a few outputs
over all k experts, in the order of the choice. Bound by reading the matrices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from baton.kernels.launch import on_triton, overlap, start_next, tl, triton, wait_for_previous
from baton.kernels.launch_table import MoERow
from baton.kernels.moe_weights import ExpertWeights, Swiglu


def moe_row(x: Tensor, chosen: Tensor, weights: Tensor, experts: ExpertWeights, gate: Swiglu, launch: MoERow) -> Tensor:
    """Compute [1, hidden] of one token."""
    assert on_triton(x)
    assert len(x) == 1
    assert experts.up[0].is_contiguous()
    assert experts.down[0].is_contiguous()
    num_chosen, (_, hidden, inner) = chosen.shape[1], experts.down.shape
    gated = torch.empty((num_chosen, inner), dtype=torch.float32, device=x.device)
    y = torch.empty_like(x)
    up_k, down_k = (min(launch.block_k, triton.next_power_of_2(size)) for size in (hidden, inner))
    _up_row_kernel[(triton.cdiv(inner, launch.up_n), num_chosen)](
        x,
        experts.up,
        experts.up if experts.up_bias is None else experts.up_bias,
        gated,
        chosen,
        experts.up.stride(0),
        inner,
        hidden,
        gate.alpha,
        gate.shift,
        gate.limit,
        HAS_BIAS=experts.up_bias is not None,
        HAS_LIMIT=math.isfinite(gate.limit),
        IS_WHOLE=hidden % up_k == 0 and inner % launch.up_n == 0,
        BLOCK_N=launch.up_n,
        BLOCK_K=up_k,
        num_warps=launch.num_warps,
        **overlap(1, x.device),
    )
    _down_row_kernel[(triton.cdiv(hidden, launch.down_n),)](
        gated,
        experts.down,
        experts.down if experts.down_bias is None else experts.down_bias,
        y,
        chosen,
        weights,
        experts.down.stride(0),
        inner,
        hidden,
        NUM_CHOSEN=num_chosen,
        HAS_BIAS=experts.down_bias is not None,
        IS_WHOLE=inner % down_k == 0 and hidden % launch.down_n == 0,
        BLOCK_N=launch.down_n,
        BLOCK_K=down_k,
        num_warps=launch.num_warps,
        **overlap(1, x.device),
    )
    return y


# --- Triton -----------------------------------------------------------------------------------------


@triton.jit
def _up_row_kernel(
    x_ptr,
    up_ptr,
    bias_ptr,
    gated_ptr,
    chosen_ptr,
    expert_stride,
    inner,
    hidden,
    alpha,
    shift,
    limit,
    HAS_BIAS: tl.constexpr,
    HAS_LIMIT: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next(OVERLAP)
    wait_for_previous(OVERLAP)
    place = tl.program_id(1)
    expert = tl.load(chosen_ptr + place).to(tl.int64)
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_n = outputs < inner
    inputs = tl.arange(0, BLOCK_K)
    gate_at = up_ptr + expert * expert_stride + outputs[:, None].to(tl.int64) * hidden + inputs[None, :]
    up_at = gate_at + inner.to(tl.int64) * hidden
    gate = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    up = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start in range(0, hidden, BLOCK_K):
        if IS_WHOLE:
            w_gate, w_up = tl.load(gate_at + start), tl.load(up_at + start)
            x = tl.load(x_ptr + start + inputs)
        else:
            inside_k = start + inputs < hidden
            kept = inside_n[:, None] & inside_k[None, :]
            w_gate, w_up = tl.load(gate_at + start, mask=kept, other=0.0), tl.load(up_at + start, mask=kept, other=0.0)
            x = tl.load(x_ptr + start + inputs, mask=inside_k, other=0.0)
        x = x.to(tl.float32)[None, :]
        gate += w_gate.to(tl.float32) * x
        up += w_up.to(tl.float32) * x
    g, u = tl.sum(gate, axis=1), tl.sum(up, axis=1)
    if HAS_BIAS:
        at = bias_ptr + expert * 2 * inner + outputs
        g += tl.load(at, mask=inside_n, other=0.0).to(tl.float32)
        u += tl.load(at + inner, mask=inside_n, other=0.0).to(tl.float32)
    if HAS_LIMIT:
        g = tl.minimum(g, limit)
        u = tl.minimum(tl.maximum(u, -limit), limit)
    gated = g / (1.0 + tl.exp(-alpha * g)) * (u + shift)
    tl.store(gated_ptr + place * inner + outputs, gated, mask=inside_n)


@triton.jit
def _down_row_kernel(
    gated_ptr,
    down_ptr,
    bias_ptr,
    y_ptr,
    chosen_ptr,
    weights_ptr,
    expert_stride,
    inner,
    hidden,
    NUM_CHOSEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next(OVERLAP)
    wait_for_previous(OVERLAP)
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_n = outputs < hidden
    inputs = tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    bias = tl.zeros([BLOCK_N], tl.float32)
    for place in tl.static_range(NUM_CHOSEN):
        expert = tl.load(chosen_ptr + place).to(tl.int64)
        weight = tl.load(weights_ptr + place)
        w_at = down_ptr + expert * expert_stride + outputs[:, None].to(tl.int64) * inner + inputs[None, :]
        for start in range(0, inner, BLOCK_K):
            if IS_WHOLE:
                w = tl.load(w_at + start)
                x = tl.load(gated_ptr + place * inner + start + inputs)
            else:
                inside_k = start + inputs < inner
                w = tl.load(w_at + start, mask=inside_n[:, None] & inside_k[None, :], other=0.0)
                x = tl.load(gated_ptr + place * inner + start + inputs, mask=inside_k, other=0.0)
            total += w.to(tl.float32) * (weight * x)[None, :]
        if HAS_BIAS:
            bias += weight * tl.load(bias_ptr + expert * hidden + outputs, mask=inside_n, other=0.0).to(tl.float32)
    y = tl.sum(total, axis=1) + bias
    tl.store(y_ptr + outputs, y.to(y_ptr.dtype.element_ty), mask=inside_n)
