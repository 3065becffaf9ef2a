"""What the attention kernels share: the shapes and strides that they are launched with, and the loop of chunks over their context.

Shapes are compiled in, strides are not; each are one argument of a kernel, a named tuple and a plain one.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from baton.kernels.attention_batch import AttentionBatch
from baton.kernels.launch import tl, triton, upcasts_dot


class AttentionShape(NamedTuple):
    """What of heads, cache and mask a kernel is compiled for."""

    num_kv_heads: int
    group: int  # query heads of a KV head
    head_dim: int
    block_d: int  # head_dim, up to a power of two
    block_size: int
    window: int  # 0: none
    has_cap: bool
    has_slopes: bool
    precision: Literal["ieee", "tf32"]
    upcasts: bool
    has_sinks: bool


def attention_shape(
    q: Tensor,
    kv_layer: Tensor,
    window: int | None,
    soft_cap: float | None,
    slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> AttentionShape:
    """Return what kernels are compiled for: q [tokens, heads, head_dim], kv_layer as in attention.py."""
    num_heads, head_dim = q.shape[1:]
    block_size, num_kv_heads = kv_layer.shape[2:4]
    return AttentionShape(
        num_kv_heads,
        num_heads // num_kv_heads,
        head_dim,
        max(16, triton.next_power_of_2(head_dim)),
        block_size,
        window or 0,
        soft_cap is not None,
        slopes is not None,
        "ieee" if q.dtype == torch.float32 else "tf32",
        upcasts_dot(q),
        sinks is not None,
    )


def attention_strides(q: Tensor, kv_layer: Tensor, batch: AttentionBatch, out: Tensor) -> tuple[int, ...]:
    """Return the strides of a sequence's block table, of q's tokens and heads, of the cache's blocks and halves, of out's tokens."""
    return (batch.block_table.stride(0), *q.stride()[:2], *kv_layer.stride()[:2], out.stride(0))


# --- Triton -----------------------------------------------------------------------------------------


@triton.jit
def sequence_of_tile(tile, query_start_ptr, first_query, num_seqs, TOKENS: tl.constexpr):
    """Find a tile's sequence: the last whose first tile is not after it."""
    low, high = 0, num_seqs
    while high - low > 1:
        middle = (low + high) // 2
        begin = tl.load(query_start_ptr + middle) - first_query
        if begin // TOKENS + middle <= tile:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def load_sinks(sinks_ptr, heads, inside, SHAPE: tl.constexpr):
    """Load the sinks of some heads, in log2; of a model that has none, what adds nothing."""
    LOG2E: tl.constexpr = 1.4426950408889634
    if SHAPE.has_sinks:
        return tl.load(sinks_ptr + heads, mask=inside, other=0.0).to(tl.float32) * LOG2E
    else:
        return heads * 0.0


@triton.jit
def with_sinks(row_sum, row_max, sinks, SHAPE: tl.constexpr):
    """Add the sinks to the sums of exponentials, as a score to which no value belongs."""
    if SHAPE.has_sinks:
        row_sum += tl.exp2(sinks - row_max)
    return tl.maximum(row_sum, 1.0e-30)


@triton.jit
def attend_tiles(
    acc,
    row_max,
    row_sum,
    q,
    positions_q,
    lowest,
    table,
    kv_ptr,
    strides,
    kv_head,
    first,
    last,
    seq_len,
    scale,
    soft_cap,
    slopes,
    SHAPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_CUT: tl.constexpr,
):
    """Attend to context tiles [first, last); IS_CUT: the mask cuts through them.

    `lowest`: the first of positions_q. `slopes`: of each row's head, where the shape has them.
    """
    LOG2E: tl.constexpr = 1.4426950408889634
    _, _, _, kv_stride_block, kv_stride_half, _ = strides
    dims = tl.arange(0, SHAPE.block_d)
    columns = tl.arange(0, BLOCK_N)
    for start in range(first, last, BLOCK_N):
        positions = start + columns
        if IS_CUT:
            blocks = tl.load(table + positions // SHAPE.block_size, mask=positions < seq_len, other=0).to(tl.int64)
        else:
            blocks = tl.load(table + positions // SHAPE.block_size).to(tl.int64)
        at = (
            blocks * kv_stride_block
            + (positions % SHAPE.block_size) * (SHAPE.num_kv_heads * SHAPE.head_dim)
            + kv_head * SHAPE.head_dim
        )
        at = at[:, None] + dims[None, :]
        if IS_CUT:
            # Masked rows are loaded as 0: what a free slot holds, or a block that was given back, may be NaN, and
            # 0 * NaN is NaN.
            seen = positions < seq_len
            if SHAPE.window > 0:
                seen = seen & (positions > lowest - SHAPE.window)
            inside = seen[:, None] & (dims[None, :] < SHAPE.head_dim)
            k = tl.load(kv_ptr + at, mask=inside, other=0.0)
            v = tl.load(kv_ptr + kv_stride_half + at, mask=inside, other=0.0)
        elif SHAPE.block_d == SHAPE.head_dim:
            k = tl.load(kv_ptr + at)
            v = tl.load(kv_ptr + kv_stride_half + at)
        else:
            k = tl.load(kv_ptr + at, mask=dims[None, :] < SHAPE.head_dim, other=0.0)
            v = tl.load(kv_ptr + kv_stride_half + at, mask=dims[None, :] < SHAPE.head_dim, other=0.0)
        if SHAPE.upcasts:
            k, v = k.to(tl.float32), v.to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision=SHAPE.precision)
        if SHAPE.has_cap:
            scores = soft_cap * (1.0 - 2.0 / (tl.exp(scores * (2.0 * scale / soft_cap)) + 1.0)) * LOG2E
        else:
            scores = scores * (scale * LOG2E)
        if SHAPE.has_slopes:
            scores += (slopes * LOG2E)[:, None] * (positions[None, :] - positions_q[:, None]).to(tl.float32)
        if IS_CUT:
            visible = positions[None, :] <= positions_q[:, None]
            if SHAPE.window > 0:
                visible = visible & (positions[None, :] > positions_q[:, None] - SHAPE.window)
            scores = tl.where(visible, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, axis=1))
        p = tl.exp2(scores - new_max[:, None])
        shrink = tl.exp2(row_max - new_max)
        row_sum = row_sum * shrink + tl.sum(p, axis=1)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=SHAPE.precision)
        row_max = new_max
    return acc, row_max, row_sum
