"""Attention of one query token a sequence over the paged cache: split over the context, packed over the heads
of a group.

A sequence's context is cut into splits whose size depends on its own length alone (256 tokens up to 16k, then
the power of two that gives at most 64), so its result never depends on its neighbours. A plan kernel, once a
step, lists (sequence, split) items from the lengths on the device, and tiles within them; each of a fixed
number of programs takes an equal run of whole splits for one KV head and walks its tiles in one loop, so that
loads run ahead across splits and sequences. Grid, addresses and workspace depend only on the padded batch, so
one CUDA graph serves all lengths. The queries of a group share one tile, so K and V are read once. A second,
small kernel merges the splits of those sequences that have several: merging inside the loop would keep the
compiler from letting loads run ahead. A sequence of length 0 (a padding row) costs nothing and writes nothing.

Bound by the bytes of K and V. Sources: Dao et al., Flash-Decoding; Ringlein et al., arXiv 2511.11581.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baton.kernels.attention_batch import AttentionBatch
from baton.kernels.attention_tiles import attention_shape, attention_strides, load_sinks, with_sinks
from baton.kernels.launch import num_sms, overlap, start_next, tl, triton, wait_for_previous
from baton.kernels.launch_table import DecodeLaunch, heads_of, launches_on

_SMALLEST_SPLIT = 256
_MAX_SPLITS = 64


@dataclass(slots=True)
class DecodePlan:
    """A step's work list and workspace, shared by its layers (of one window)."""

    launch: DecodeLaunch
    tiles: Tensor  # [capacity, 4] int32: sequence, first position, end of its split, item and flags
    item_tiles: Tensor  # [num_decodes * max_splits + 1] int32: each item's first tile, and the end
    first_items: Tensor  # [num_decodes + 1] int32: each sequence's first item (a split of a sequence), and their number
    partial: Tensor  # [num_decodes * max_splits * kv_heads, group, head_dim] fp32, not normalized
    partial_max: Tensor  # [num_decodes * max_splits * kv_heads, group] fp32, in log2
    partial_sum: Tensor  # the same shape


def plan_decode(
    q: Tensor, kv_layer: Tensor, batch: AttentionBatch, window: int | None, launch: DecodeLaunch | None = None
) -> DecodePlan:
    """List the step's work on the device and take its workspace."""
    launch = launch or launches_on(q.device).decode[heads_of(q)]
    num_decodes, (num_heads, head_dim) = batch.num_decodes, q.shape[1:]
    block_size, num_kv_heads = kv_layer.shape[2:4]
    longest = batch.block_table.shape[1] * block_size
    if window is not None:
        longest = min(longest, window + block_size)
    max_splits = max(1, min(_MAX_SPLITS, -(-longest // _SMALLEST_SPLIT)))
    max_tiles = max(1, -(-longest // launch.block_n)) + max_splits
    capacity = num_decodes * max_splits
    group = num_heads // num_kv_heads
    assert capacity * num_heads * head_dim < 2**31

    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=q.device)

    plan = DecodePlan(
        launch,
        tiles=empty(num_decodes * max_tiles, 4),
        item_tiles=empty(capacity + 1),
        first_items=empty(num_decodes + 1),
        partial=empty(capacity * num_kv_heads, group, head_dim, dtype=torch.float32),
        partial_max=empty(capacity * num_kv_heads, group, dtype=torch.float32),
        partial_sum=empty(capacity * num_kv_heads, group, dtype=torch.float32),
    )
    _plan_kernel[(num_decodes,)](
        batch.seq_lens,
        plan.tiles,
        plan.item_tiles,
        plan.first_items,
        num_decodes,
        WINDOW=window or 0,
        BLOCK_SIZE=block_size,
        SMALLEST=_SMALLEST_SPLIT,
        MAX_SPLITS=_MAX_SPLITS,
        BLOCK_N=launch.block_n,
        BLOCK_SEQS=triton.next_power_of_2(num_decodes),
        num_warps=4,
        **overlap(batch.num_decodes, q.device),
    )
    return plan


def decode_attention(
    q: Tensor,
    kv_layer: Tensor,
    batch: AttentionBatch,
    plan: DecodePlan,
    out: Tensor,
    *,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> None:
    """Attend for the first num_decodes tokens; writes their rows of `out` [tokens, heads, head_dim]."""
    launch, shape = plan.launch, attention_shape(q, kv_layer, window, soft_cap, slopes, sinks)
    num_heads, head_dim = q.shape[1:]
    max_items = plan.item_tiles.shape[0] - 1
    num_lanes = min(max(1, num_sms(q.device) * launch.programs_per_sm // shape.num_kv_heads), max_items)
    overlaps = overlap(batch.num_decodes, q.device)
    _decode_kernel[(shape.num_kv_heads * num_lanes,)](
        q,
        kv_layer,
        out,
        q if sinks is None else sinks,
        plan.tiles,
        plan.item_tiles,
        plan.first_items,
        plan.partial,
        plan.partial_max,
        plan.partial_sum,
        batch.block_table,
        batch.seq_lens,
        q if slopes is None else slopes,
        batch.num_decodes,
        attention_strides(q, kv_layer, batch, out),
        scale,
        soft_cap or 0.0,
        SHAPE=shape,
        BLOCK_G=max(16, triton.next_power_of_2(shape.group)),
        BLOCK_N=launch.block_n,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        **overlaps,
    )
    if max_items > batch.num_decodes:
        _merge_kernel[(triton.cdiv(num_heads, 4), batch.num_decodes)](
            out,
            q if sinks is None else sinks,
            plan.first_items,
            plan.partial,
            plan.partial_max,
            plan.partial_sum,
            out.stride(0),
            SHAPE=shape,
            BLOCK_HEADS=4,
            BLOCK_D=triton.next_power_of_2(head_dim),
            num_warps=1,
            num_stages=1,
            **overlaps,
        )


# --- Triton -----------------------------------------------------------------------------------------


@triton.jit
def _first_seen(seq_len, WINDOW: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Find the first context position to read: the window's start, down to a block's."""
    if WINDOW > 0:
        return tl.maximum(seq_len - WINDOW, 0) // BLOCK_SIZE * BLOCK_SIZE
    else:
        return seq_len * 0


@triton.jit
def _split_size(length, SMALLEST: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """Choose the size of the splits of a context of `length` tokens: a function of the length alone."""
    size = tl.where(length > SMALLEST * MAX_SPLITS, 2 * SMALLEST, SMALLEST)
    size = tl.where(length > 2 * SMALLEST * MAX_SPLITS, 4 * SMALLEST, size)
    size = tl.where(length > 4 * SMALLEST * MAX_SPLITS, 8 * SMALLEST, size)
    size = tl.where(length > 8 * SMALLEST * MAX_SPLITS, 16 * SMALLEST, size)
    size = tl.where(length > 16 * SMALLEST * MAX_SPLITS, 64 * SMALLEST, size)
    return tl.where(length > 64 * SMALLEST * MAX_SPLITS, 1024 * SMALLEST, size)


@triton.jit(do_not_specialize=["num_seqs"])
def _plan_kernel(
    seq_lens_ptr,
    tiles_ptr,
    item_tiles_ptr,
    first_items_ptr,
    num_seqs,
    WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SMALLEST: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SEQS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next(OVERLAP)
    wait_for_previous(OVERLAP)
    seq = tl.program_id(0)
    seqs = tl.arange(0, BLOCK_SEQS)
    lens = tl.load(seq_lens_ptr + seqs, mask=seqs < num_seqs, other=0)
    seen_from = _first_seen(lens, WINDOW, BLOCK_SIZE)
    seen = lens - seen_from
    size = _split_size(seen, SMALLEST, MAX_SPLITS)
    # A sequence of length 0, as those past the end here, has none.
    num_splits = (seen + size - 1) // size
    num_tiles = (seen + BLOCK_N - 1) // BLOCK_N
    before, mine = seqs < seq, seqs == seq
    first_item = tl.sum(tl.where(before, num_splits, 0), axis=0)
    first_tile = tl.sum(tl.where(before, num_tiles, 0), axis=0)
    num_splits = tl.sum(tl.where(mine, num_splits, 0), axis=0)
    num_tiles = tl.sum(tl.where(mine, num_tiles, 0), axis=0)
    size = tl.sum(tl.where(mine, size, 0), axis=0)
    seen_from = tl.sum(tl.where(mine, seen_from, 0), axis=0)
    seq_len = tl.sum(tl.where(mine, lens, 0), axis=0)

    tl.store(first_items_ptr + seq, first_item)
    splits = tl.arange(0, MAX_SPLITS)
    tl.store(item_tiles_ptr + first_item + splits, first_tile + splits * (size // BLOCK_N), mask=splits < num_splits)
    columns = tl.arange(0, 256)
    for begin in range(0, num_tiles, 256):
        tile = begin + columns
        inside = tile < num_tiles
        split = tile * BLOCK_N // size
        end = tl.minimum(seen_from + (split + 1) * size, seq_len)
        start = seen_from + tile * BLOCK_N
        is_first = (tile * BLOCK_N % size == 0).to(tl.int32)
        is_last = (start + BLOCK_N >= end).to(tl.int32)
        to = tiles_ptr + 4 * (first_tile + tile)
        tl.store(to, seq + 0 * tile, mask=inside)
        tl.store(to + 1, start, mask=inside)
        tl.store(to + 2, end, mask=inside)
        is_only = (num_splits == 1).to(tl.int32)
        tl.store(to + 3, 8 * (first_item + split) + 4 * is_only + 2 * is_last + is_first, mask=inside)
    if seq == num_seqs - 1:
        tl.store(first_items_ptr + num_seqs, first_item + num_splits)
        tl.store(item_tiles_ptr + first_item + num_splits, first_tile + num_tiles)


@triton.jit(do_not_specialize=["num_seqs"])
def _decode_kernel(
    q_ptr,
    kv_ptr,
    out_ptr,
    sinks_ptr,
    tiles_ptr,
    item_tiles_ptr,
    first_items_ptr,
    partial_ptr,
    partial_max_ptr,
    partial_sum_ptr,
    block_table_ptr,
    seq_lens_ptr,
    slopes_ptr,
    num_seqs,
    strides,
    scale,
    soft_cap,
    SHAPE: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    table_stride, q_stride_token, q_stride_head, kv_stride_block, kv_stride_half, out_stride_token = strides
    BLOCK_D: tl.constexpr = SHAPE.block_d
    start_next(OVERLAP)
    wait_for_previous(OVERLAP)
    LOG2E: tl.constexpr = 1.4426950408889634
    rows = tl.arange(0, BLOCK_G)
    dims = tl.arange(0, BLOCK_D)
    columns = tl.arange(0, BLOCK_N)
    inside_q = (rows[:, None] < SHAPE.group) & (dims[None, :] < SHAPE.head_dim)
    # KV heads are neighbours in the grid: programs that run together read whole tokens, not slices of them.
    kv_head = tl.program_id(0) % SHAPE.num_kv_heads
    lane, num_lanes = tl.program_id(0) // SHAPE.num_kv_heads, tl.num_programs(0) // SHAPE.num_kv_heads
    num_items = tl.load(first_items_ptr + num_seqs)
    first_tile = tl.load(item_tiles_ptr + lane * num_items // num_lanes)
    last_tile = tl.load(item_tiles_ptr + (lane + 1) * num_items // num_lanes)
    head_rows = kv_head * SHAPE.group + rows
    if SHAPE.has_slopes:
        slopes = tl.load(slopes_ptr + head_rows, mask=rows < SHAPE.group, other=0.0)
    at_head = head_rows[:, None] * q_stride_head + dims[None, :]
    row_max = tl.full([BLOCK_G], -1.0e30, tl.float32)
    row_sum = tl.zeros([BLOCK_G], tl.float32)
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    sinks = load_sinks(sinks_ptr, head_rows, rows < SHAPE.group, SHAPE)
    for tile in range(first_tile, last_tile):
        seq = tl.load(tiles_ptr + 4 * tile)
        start = tl.load(tiles_ptr + 4 * tile + 1)
        end = tl.load(tiles_ptr + 4 * tile + 2)
        item_flags = tl.load(tiles_ptr + 4 * tile + 3)
        positions = start + columns
        valid = positions < end
        table = block_table_ptr + seq.to(tl.int64) * table_stride
        blocks = tl.load(table + positions // SHAPE.block_size, mask=valid, other=0).to(tl.int64)
        at = (
            blocks * kv_stride_block
            + (positions % SHAPE.block_size) * (SHAPE.num_kv_heads * SHAPE.head_dim)
            + kv_head * SHAPE.head_dim
        )
        inside = valid[:, None] & (dims[None, :] < SHAPE.head_dim)
        q = tl.load(q_ptr + seq.to(tl.int64) * q_stride_token + at_head, mask=inside_q, other=0.0)
        # Masked rows are loaded as 0: what a free slot holds may be NaN, and 0 * NaN is NaN.
        k = tl.load(kv_ptr + at[:, None] + dims[None, :], mask=inside, other=0.0)
        v = tl.load(kv_ptr + kv_stride_half + at[:, None] + dims[None, :], mask=inside, other=0.0)
        if SHAPE.upcasts:
            q, k, v = q.to(tl.float32), k.to(tl.float32), v.to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision=SHAPE.precision) * scale
        if SHAPE.has_cap:
            scores = soft_cap * (1.0 - 2.0 / (tl.exp(2.0 * scores / soft_cap) + 1.0))
        if SHAPE.has_slopes:
            distances = positions - (tl.load(seq_lens_ptr + seq) - 1)
            scores += slopes[:, None] * distances[None, :].to(tl.float32)
        scores = scores * LOG2E
        if SHAPE.window > 0:
            valid = valid & (positions >= tl.load(seq_lens_ptr + seq) - SHAPE.window)
        scores = tl.where(valid[None, :], scores, float("-inf"))
        is_first = item_flags % 2 == 1
        row_max = tl.where(is_first, -1.0e30, row_max)
        new_max = tl.maximum(row_max, tl.max(scores, axis=1))
        p = tl.exp2(scores - new_max[:, None])
        shrink = tl.where(is_first, 0.0, tl.exp2(row_max - new_max))
        row_sum = row_sum * shrink + tl.sum(p, axis=1)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=SHAPE.precision)
        row_max = new_max
        if item_flags // 2 % 2 == 1:  # the last tile of its split
            if item_flags // 4 % 2 == 1:  # the only split of its sequence
                o = acc / with_sinks(row_sum, row_max, sinks, SHAPE)[:, None]
                at_o = seq.to(tl.int64) * out_stride_token + head_rows[:, None] * SHAPE.head_dim + dims[None, :]
                tl.store(out_ptr + at_o, o.to(out_ptr.dtype.element_ty), mask=inside_q)
            else:
                part = (item_flags // 8 * SHAPE.num_kv_heads + kv_head) * SHAPE.group + rows
                tl.store(partial_ptr + part[:, None] * SHAPE.head_dim + dims[None, :], acc, mask=inside_q)
                tl.store(partial_max_ptr + part, row_max, mask=rows < SHAPE.group)
                tl.store(partial_sum_ptr + part, row_sum, mask=rows < SHAPE.group)


@triton.jit
def _merge_kernel(
    out_ptr,
    sinks_ptr,
    first_items_ptr,
    partial_ptr,
    partial_max_ptr,
    partial_sum_ptr,
    out_stride_token,
    SHAPE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Merge the splits of one sequence and four heads, always in order and eight at a time.

    One warp does it all in registers: with four warps the sums over splits went through shared memory, and at 256
    sequences of 1k the merge took 25 us, a tenth of the attention, where it now takes 5.
    """
    start_next(OVERLAP)
    wait_for_previous(OVERLAP)
    MERGE: tl.constexpr = 8
    NUM_HEADS: tl.constexpr = SHAPE.num_kv_heads * SHAPE.group
    HEAD_DIM: tl.constexpr = SHAPE.head_dim
    seq = tl.program_id(1)
    first, last = tl.load(first_items_ptr + seq), tl.load(first_items_ptr + seq + 1)
    if last - first > 1:
        heads = tl.program_id(0) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
        dims = tl.arange(0, BLOCK_D)
        splits = tl.arange(0, MERGE)
        inside_out = (heads < NUM_HEADS)[:, None] & (dims < HEAD_DIM)[None, :]
        total_max = tl.full([BLOCK_HEADS], -1.0e30, tl.float32)
        total_sum = tl.zeros([BLOCK_HEADS], tl.float32)
        total = tl.zeros([BLOCK_HEADS, BLOCK_D], tl.float32)
        for item in range(first, last, MERGE):
            inside = (item + splits < last)[:, None] & (heads < NUM_HEADS)[None, :]
            at = (item + splits)[:, None] * NUM_HEADS + heads[None, :]
            maxima = tl.load(partial_max_ptr + at, mask=inside, other=-1.0e30)
            sums = tl.load(partial_sum_ptr + at, mask=inside, other=0.0)
            at_parts = at[:, :, None] * HEAD_DIM + dims[None, None, :]
            inside_parts = inside[:, :, None] & (dims < HEAD_DIM)[None, None, :]
            parts = tl.load(partial_ptr + at_parts, mask=inside_parts, other=0.0)
            new_max = tl.maximum(total_max, tl.max(maxima, axis=0))
            weights = tl.exp2(maxima - new_max[None, :])
            shrink = tl.exp2(total_max - new_max)
            total_sum = total_sum * shrink + tl.sum(sums * weights, axis=0)
            total = total * shrink[:, None] + tl.sum(parts * weights[:, :, None], axis=0)
            total_max = new_max
        sinks = load_sinks(sinks_ptr, heads, heads < NUM_HEADS, SHAPE)
        o = total / with_sinks(total_sum, total_max, sinks, SHAPE)[:, None]
        to = out_ptr + seq.to(tl.int64) * out_stride_token + heads[:, None] * HEAD_DIM + dims[None, :]
        tl.store(to, o.to(out_ptr.dtype.element_ty), mask=inside_out)
