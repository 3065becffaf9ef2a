"""Attention of a mixed step in which a query's result depends on its own context alone, bit for bit.

The formula is attention.py's. A decode and a chunk's query go through one kernel with one shape of tile, and every query
adds up its context in one order: tiles of fixed size within splits at fixed positions (multiples of 512), splits joined
from the first to the last. So neither the other sequences, nor how a prompt was cut into chunks, nor what a prefix cache had, changes a bit:
a tile that a query does not see leaves its sums as they are. Where there are few queries, splits are computed by several
programs and joined by a second kernel with the same operations, which change nothing either: products and additions are not
contracted, so each element is rounded alike in both.

Decodes are bound by the bytes of K and V, chunks by matrix arithmetic. Sources: Dao, arXiv 2307.08691; He et al., "Defeating
Nondeterminism in LLM Inference".
"""

from __future__ import annotations

import torch
from torch import Tensor

from baton.kernels.attention_batch import AttentionBatch
from baton.kernels.attention_reference import paged_attention_reference
from baton.kernels.attention_tiles import (
    attend_tiles,
    attention_shape,
    attention_strides,
    load_sinks,
    sequence_of_tile,
    with_sinks,
)
from baton.kernels.launch import num_sms, on_triton, tl, triton
from baton.kernels.launch_table import PrefillLaunch

_SPLIT = 512  # context tokens
# Splits run side by side until there are so many programs an SM.
_PROGRAMS_PER_SM = 2


# For decodes and chunks alike, by dtype and head size alone: 64 rows are the fewest of a warp group's instruction.
_LAUNCH = PrefillLaunch(64, 64, 4, 5)
_LAUNCH_WIDE = PrefillLaunch(64, 32, 8, 2)


def invariant_attention(
    q: Tensor,
    kv_layer: Tensor,
    batch: AttentionBatch,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attend as `paged_attention` does, with equal bits for equal queries and contexts.

    On a CPU this is the reference, whose bits are a function of a query's context where it is called with one query.
    """
    if not on_triton(q):
        return paged_attention_reference(
            q, kv_layer, batch, scale=scale, window=window, soft_cap=soft_cap, slopes=slopes, sinks=sinks
        )
    launch = _LAUNCH_WIDE if q.element_size() > 2 or q.shape[2] > 128 else _LAUNCH
    shape = attention_shape(q, kv_layer, window, soft_cap, slopes, sinks)
    num_tokens, num_heads, head_dim = q.shape
    num_seqs = batch.num_seqs
    block_m = max(launch.block_m, triton.next_power_of_2(shape.group))
    longest = batch.block_table.shape[1] * shape.block_size
    max_splits = -(-longest // _SPLIT)
    if window is not None:
        max_splits = min(max_splits, (window + launch.block_n) // _SPLIT + 2)
    num_lanes = 1
    if batch.num_decodes == num_seqs:
        num_lanes = max(1, min(max_splits, _PROGRAMS_PER_SM * num_sms(q.device) // (num_seqs * shape.num_kv_heads)))
    is_split = num_lanes > 1
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    partial_shape = (num_seqs if is_split else 0, max_splits, num_heads, head_dim + 2)
    partial = torch.empty(partial_shape, dtype=torch.float32, device=q.device)
    options = {"SHAPE": shape, "SPLIT": _SPLIT, "BLOCK_N": launch.block_n, "enable_fp_fusion": False}
    # A sequence's first tile is its first query's over the tile's tokens, plus its index.
    num_tiles = num_tokens // (block_m // shape.group) + num_seqs
    _attention_kernel[(shape.num_kv_heads, num_tiles, num_lanes)](
        q,
        kv_layer,
        out,
        q if sinks is None else sinks,
        partial,
        batch.block_table,
        batch.query_start,
        batch.seq_lens,
        q if slopes is None else slopes,
        num_seqs,
        max_splits,
        attention_strides(q, kv_layer, batch, out),
        scale,
        soft_cap or 0.0,
        IS_SPLIT=is_split,
        BLOCK_M=block_m,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        **options,
    )
    if is_split:
        _join_kernel[(triton.cdiv(num_heads, 4), num_seqs)](
            out,
            q if sinks is None else sinks,
            partial,
            batch.seq_lens,
            max_splits,
            out.stride(0),
            BLOCK_HEADS=4,
            BLOCK_D=triton.next_power_of_2(head_dim),
            num_warps=4,
            **options,
        )
    return out


# --- Triton -----------------------------------------------------------------------------------------


@triton.jit
def _first_tile(lowest, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr):
    """Find where the first tile starts that a query at `lowest` sees."""
    if WINDOW > 0:
        return tl.maximum(lowest - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
    else:
        return lowest * 0


@triton.jit
def _join(total, total_max, total_sum, part, part_max, part_sum):
    """Add a split's sums to those of the splits before it."""
    new_max = tl.maximum(total_max, part_max)
    shrink, weight = tl.exp2(total_max - new_max), tl.exp2(part_max - new_max)
    total_sum = total_sum * shrink + part_sum * weight
    total = total * shrink[:, None] + part * weight[:, None]
    return total, new_max, total_sum


@triton.jit(do_not_specialize=["num_seqs", "max_splits"])
def _attention_kernel(
    q_ptr,
    kv_ptr,
    out_ptr,
    sinks_ptr,
    partial_ptr,
    block_table_ptr,
    query_start_ptr,
    seq_lens_ptr,
    slopes_ptr,
    num_seqs,
    max_splits,
    strides,
    scale,
    soft_cap,
    SHAPE: tl.constexpr,
    SPLIT: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    table_stride, q_stride_token, q_stride_head, _, _, out_stride_token = strides
    BLOCK_D: tl.constexpr = SHAPE.block_d
    TOKENS: tl.constexpr = BLOCK_M // SHAPE.group
    kv_head, lane = tl.program_id(0), tl.program_id(2)
    # The last tiles of a prompt see the most context: they start first.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    seq = sequence_of_tile(tile, query_start_ptr, 0, num_seqs, TOKENS)
    query_begin = tl.load(query_start_ptr + seq)
    query_len = tl.load(query_start_ptr + seq + 1) - query_begin
    within = (tile - (query_begin // TOKENS + seq)) * TOKENS
    if within < query_len:
        seq_len = tl.load(seq_lens_ptr + seq)
        rows = tl.arange(0, BLOCK_M)
        dims = tl.arange(0, BLOCK_D)
        tokens = within + rows // SHAPE.group
        heads = kv_head * SHAPE.group + rows % SHAPE.group
        inside_rows = (rows < TOKENS * SHAPE.group) & (tokens < query_len)
        inside = inside_rows[:, None] & (dims[None, :] < SHAPE.head_dim)
        tokens_all = (query_begin + tokens).to(tl.int64)
        at_q = tokens_all[:, None] * q_stride_token + heads[:, None] * q_stride_head + dims[None, :]
        q = tl.load(q_ptr + at_q, mask=inside, other=0.0)
        if SHAPE.upcasts:
            q = q.to(tl.float32)
        start = seq_len - query_len
        lowest = start + within
        end = tl.minimum(lowest + TOKENS, seq_len)
        table = block_table_ptr + seq.to(tl.int64) * table_stride
        first = _first_tile(lowest, SHAPE.window, BLOCK_N)
        slopes = tl.zeros([BLOCK_M], tl.float32)
        if SHAPE.has_slopes:
            slopes = tl.load(slopes_ptr + heads)

        total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        total_max = tl.full([BLOCK_M], -1.0e30, tl.float32)
        total_sum = tl.zeros([BLOCK_M], tl.float32)
        for split in range(first // SPLIT + lane, tl.cdiv(end, SPLIT), tl.num_programs(2)):
            part, part_max, part_sum = attend_tiles(
                tl.zeros([BLOCK_M, BLOCK_D], tl.float32),
                tl.full([BLOCK_M], -1.0e30, tl.float32),
                tl.zeros([BLOCK_M], tl.float32),
                q,
                start + tokens,
                lowest,
                table,
                kv_ptr,
                strides,
                kv_head,
                tl.maximum(split * SPLIT, first),
                tl.minimum((split + 1) * SPLIT, end),
                seq_len,
                scale,
                soft_cap,
                slopes,
                SHAPE,
                BLOCK_N,
                True,
            )
            if IS_SPLIT:
                row = (seq.to(tl.int64) * max_splits + split - first // SPLIT) * (
                    SHAPE.num_kv_heads * SHAPE.group
                ) + heads
                at = partial_ptr + row * (SHAPE.head_dim + 2)
                tl.store(at[:, None] + dims[None, :], part, mask=inside)
                tl.store(at + SHAPE.head_dim, part_max, mask=inside_rows)
                tl.store(at + SHAPE.head_dim + 1, part_sum, mask=inside_rows)
            else:
                total, total_max, total_sum = _join(total, total_max, total_sum, part, part_max, part_sum)
        if not IS_SPLIT:
            sinks = load_sinks(sinks_ptr, heads, rows < TOKENS * SHAPE.group, SHAPE)
            o = total / with_sinks(total_sum, total_max, sinks, SHAPE)[:, None]
            at_o = tokens_all[:, None] * out_stride_token + heads[:, None] * SHAPE.head_dim + dims[None, :]
            tl.store(out_ptr + at_o, o.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["max_splits"])
def _join_kernel(
    out_ptr,
    sinks_ptr,
    partial_ptr,
    seq_lens_ptr,
    max_splits,
    out_stride_token,
    SHAPE: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Join the splits of one decode and a few heads, in their order."""
    NUM_HEADS: tl.constexpr = SHAPE.num_kv_heads * SHAPE.group
    seq = tl.program_id(1).to(tl.int64)
    seq_len = tl.load(seq_lens_ptr + seq)
    heads = tl.program_id(0) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    dims = tl.arange(0, BLOCK_D)
    inside_heads = heads < NUM_HEADS
    inside = inside_heads[:, None] & (dims < SHAPE.head_dim)[None, :]
    total = tl.zeros([BLOCK_HEADS, BLOCK_D], tl.float32)
    total_max = tl.full([BLOCK_HEADS], -1.0e30, tl.float32)
    total_sum = tl.zeros([BLOCK_HEADS], tl.float32)
    num_splits = tl.cdiv(seq_len, SPLIT) - _first_tile(seq_len - 1, SHAPE.window, BLOCK_N) // SPLIT
    for split in range(0, num_splits):
        at = partial_ptr + ((seq * max_splits + split) * NUM_HEADS + heads) * (SHAPE.head_dim + 2)
        part = tl.load(at[:, None] + dims[None, :], mask=inside, other=0.0)
        part_max = tl.load(at + SHAPE.head_dim, mask=inside_heads, other=-1.0e30)
        part_sum = tl.load(at + SHAPE.head_dim + 1, mask=inside_heads, other=0.0)
        total, total_max, total_sum = _join(total, total_max, total_sum, part, part_max, part_sum)
    sinks = load_sinks(sinks_ptr, heads, inside_heads, SHAPE)
    o = total / with_sinks(total_sum, total_max, sinks, SHAPE)[:, None]
    to = out_ptr + seq * out_stride_token + heads[:, None] * SHAPE.head_dim + dims[None, :]
    tl.store(to, o.to(out_ptr.dtype.element_ty), mask=inside)
