"""The products of a mixture of experts over tiles of tokens that chose the same expert (moe.py has the formula).

Pairs of token and expert are sorted by expert (moe_order.py); each program multiplies up to block_m rows of one expert by
block_n of its outputs. The first product gathers x's rows and gates what it has summed, [pairs, inner]; the second writes each
pair's output where the pair stands, [tokens, k, hidden]; the last kernel sums a token's k with their weights, always in the
same order. At few tokens bound by reading the matrices of the experts that are touched, at many by the matrix cores, less what
tiles that are not full waste.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from baton.kernels.launch import on_triton, overlap, start_next, tl, triton, upcasts_dot, wait_for_previous
from baton.kernels.launch_table import MoETile
from baton.kernels.moe_order import Tiles, order_by_expert
from baton.kernels.moe_weights import ExpertWeights, Swiglu


def moe_tiles(
    x: Tensor, chosen: Tensor, weights: Tensor, experts: ExpertWeights, gate: Swiglu, launch: MoETile
) -> Tensor:
    """Compute [tokens, hidden] by these tiles."""
    assert on_triton(x)
    assert x.stride(1) == 1
    assert experts.up[0].is_contiguous()
    assert experts.down[0].is_contiguous()
    tiles = order_by_expert(chosen, len(experts.up), launch.block_m)
    gated = _up(x, chosen.shape[1], tiles, experts, gate, launch)
    y = _down(gated, tiles, experts, launch, len(x))
    return _sum(y.view(*chosen.shape, -1), weights)


# --- Triton -----------------------------------------------------------------------------------------

_SUMMED = 1024


def _up(x: Tensor, num_chosen: int, tiles: Tiles, experts: ExpertWeights, gate: Swiglu, launch: MoETile) -> Tensor:
    _, rows, hidden = experts.up.shape
    inner, tile = rows // 2, launch.up
    gated = torch.empty((len(tiles.order), inner), dtype=x.dtype, device=x.device)
    num_tiles = len(tiles.expert)
    _up_kernel[(num_tiles * triton.cdiv(inner, tile.block_n),)](
        x,
        experts.up,
        experts.up if experts.up_bias is None else experts.up_bias,
        gated,
        *tiles,
        num_tiles,
        x.stride(0),
        experts.up.stride(0),
        inner,
        hidden,
        gate.alpha,
        gate.shift,
        gate.limit,
        NUM_CHOSEN=num_chosen,
        HAS_BIAS=experts.up_bias is not None,
        HAS_LIMIT=math.isfinite(gate.limit),
        IS_WHOLE=hidden % tile.block_k == 0 and inner % tile.block_n == 0,
        BLOCK_M=launch.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        GROUP=launch.group,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        UPCAST=upcasts_dot(x),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **overlap(len(x), x.device),
    )
    return gated


def _down(gated: Tensor, tiles: Tiles, experts: ExpertWeights, launch: MoETile, num_tokens: int) -> Tensor:
    _, hidden, inner = experts.down.shape
    tile = launch.down
    y = torch.empty((len(gated), hidden), dtype=gated.dtype, device=gated.device)
    num_tiles = len(tiles.expert)
    _down_kernel[(num_tiles * triton.cdiv(hidden, tile.block_n),)](
        gated,
        experts.down,
        experts.down if experts.down_bias is None else experts.down_bias,
        y,
        *tiles,
        num_tiles,
        experts.down.stride(0),
        inner,
        hidden,
        HAS_BIAS=experts.down_bias is not None,
        IS_WHOLE=inner % tile.block_k == 0 and hidden % tile.block_n == 0,
        BLOCK_M=launch.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        GROUP=launch.group,
        PRECISION="ieee" if gated.dtype == torch.float32 else "tf32",
        UPCAST=upcasts_dot(gated),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **overlap(num_tokens, gated.device),
    )
    return y


def _sum(y: Tensor, weights: Tensor) -> Tensor:
    num_tokens, num_chosen, hidden = y.shape
    out = torch.empty((num_tokens, hidden), dtype=y.dtype, device=y.device)
    _sum_kernel[(num_tokens, triton.cdiv(hidden, _SUMMED))](
        y, weights, out, hidden, NUM_CHOSEN=num_chosen, BLOCK=_SUMMED, num_warps=4, **overlap(num_tokens, y.device)
    )
    return out


@triton.jit
def _tile_of(num_tiles, num_n, GROUP: tl.constexpr):
    """Find this program's tile of rows and of outputs: programs that run together share rows and matrices."""
    program = tl.program_id(0)
    first = program // (GROUP * num_n) * GROUP
    height = tl.minimum(num_tiles - first, GROUP)
    within = program % (GROUP * num_n)
    return first + within % height, within // height


@triton.jit(do_not_specialize=["num_tiles"])
def _up_kernel(
    x_ptr,
    up_ptr,
    bias_ptr,
    gated_ptr,
    order_ptr,
    expert_ptr,
    first_ptr,
    end_ptr,
    num_tiles,
    x_stride,
    expert_stride,
    inner,
    hidden,
    alpha,
    shift,
    limit,
    NUM_CHOSEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_LIMIT: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next(OVERLAP)
    wait_for_previous(OVERLAP)
    tile, n = _tile_of(num_tiles, tl.cdiv(inner, BLOCK_N), GROUP)
    expert = tl.load(expert_ptr + tile).to(tl.int64)
    if expert < 0:
        return
    rows = tl.load(first_ptr + tile) + tl.arange(0, BLOCK_M)
    inside = rows < tl.load(end_ptr + tile)
    tokens = tl.load(order_ptr + rows, mask=inside, other=0) // NUM_CHOSEN
    outputs = n * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_n = outputs < inner
    inputs = tl.arange(0, BLOCK_K)
    x_at = x_ptr + tokens[:, None].to(tl.int64) * x_stride + inputs[None, :]
    gate_at = up_ptr + expert * expert_stride + outputs[:, None].to(tl.int64) * hidden + inputs[None, :]
    up_at = gate_at + inner.to(tl.int64) * hidden
    gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, hidden, BLOCK_K):
        if IS_WHOLE:
            x = tl.load(x_at, mask=inside[:, None], other=0.0)
            w_gate = tl.load(gate_at)
            w_up = tl.load(up_at)
        else:
            inside_k = (start + inputs < hidden)[None, :]
            x = tl.load(x_at, mask=inside[:, None] & inside_k, other=0.0)
            w_gate = tl.load(gate_at, mask=inside_n[:, None] & inside_k, other=0.0)
            w_up = tl.load(up_at, mask=inside_n[:, None] & inside_k, other=0.0)
        if UPCAST:
            x, w_gate, w_up = x.to(tl.float32), w_gate.to(tl.float32), w_up.to(tl.float32)
        gate = tl.dot(x, tl.trans(w_gate), gate, input_precision=PRECISION)
        up = tl.dot(x, tl.trans(w_up), up, input_precision=PRECISION)
        x_at += BLOCK_K
        gate_at += BLOCK_K
        up_at += BLOCK_K
    if HAS_BIAS:
        at = bias_ptr + expert * 2 * inner + outputs
        gate += tl.load(at, mask=inside_n, other=0.0).to(tl.float32)[None, :]
        up += tl.load(at + inner, mask=inside_n, other=0.0).to(tl.float32)[None, :]
    gated = _gate(gate, up, alpha, shift, limit, HAS_LIMIT)
    to = gated_ptr + rows[:, None].to(tl.int64) * inner + outputs[None, :]
    tl.store(to, gated.to(gated_ptr.dtype.element_ty), mask=inside[:, None] & inside_n[None, :])


@triton.jit
def _gate(gate, up, alpha, shift, limit, HAS_LIMIT: tl.constexpr):
    if HAS_LIMIT:
        gate = tl.minimum(gate, limit)
        up = tl.minimum(tl.maximum(up, -limit), limit)
    return gate / (1.0 + tl.exp(-alpha * gate)) * (up + shift)


@triton.jit(do_not_specialize=["num_tiles"])
def _down_kernel(
    gated_ptr,
    down_ptr,
    bias_ptr,
    y_ptr,
    order_ptr,
    expert_ptr,
    first_ptr,
    end_ptr,
    num_tiles,
    expert_stride,
    inner,
    hidden,
    HAS_BIAS: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next(OVERLAP)
    wait_for_previous(OVERLAP)
    tile, n = _tile_of(num_tiles, tl.cdiv(hidden, BLOCK_N), GROUP)
    expert = tl.load(expert_ptr + tile).to(tl.int64)
    if expert < 0:
        return
    rows = tl.load(first_ptr + tile) + tl.arange(0, BLOCK_M)
    inside = rows < tl.load(end_ptr + tile)
    outputs = n * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_n = outputs < hidden
    inputs = tl.arange(0, BLOCK_K)
    x_at = gated_ptr + rows[:, None].to(tl.int64) * inner + inputs[None, :]
    w_at = down_ptr + expert * expert_stride + outputs[:, None].to(tl.int64) * inner + inputs[None, :]
    y = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, inner, BLOCK_K):
        if IS_WHOLE:
            x = tl.load(x_at, mask=inside[:, None], other=0.0)
            w = tl.load(w_at)
        else:
            inside_k = (start + inputs < inner)[None, :]
            x = tl.load(x_at, mask=inside[:, None] & inside_k, other=0.0)
            w = tl.load(w_at, mask=inside_n[:, None] & inside_k, other=0.0)
        if UPCAST:
            x, w = x.to(tl.float32), w.to(tl.float32)
        y = tl.dot(x, tl.trans(w), y, input_precision=PRECISION)
        x_at += BLOCK_K
        w_at += BLOCK_K
    if HAS_BIAS:
        y += tl.load(bias_ptr + expert * hidden + outputs, mask=inside_n, other=0.0).to(tl.float32)[None, :]
    pairs = tl.load(order_ptr + rows, mask=inside, other=0).to(tl.int64)
    to = y_ptr + pairs[:, None] * hidden + outputs[None, :]
    tl.store(to, y.to(y_ptr.dtype.element_ty), mask=inside[:, None] & inside_n[None, :])


@triton.jit
def _sum_kernel(
    y_ptr, weights_ptr, out_ptr, hidden, NUM_CHOSEN: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):
    start_next(OVERLAP)
    wait_for_previous(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < hidden
    total = tl.zeros([BLOCK], tl.float32)
    for place in tl.static_range(NUM_CHOSEN):
        pair = token * NUM_CHOSEN + place
        y = tl.load(y_ptr + pair * hidden + columns, mask=inside, other=0.0).to(tl.float32)
        total += tl.load(weights_ptr + pair) * y
    tl.store(out_ptr + token * hidden + columns, total.to(out_ptr.dtype.element_ty), mask=inside)
