"""Attention of prompt chunks of any lengths over the paged cache: one kernel for all sequences of a step.

A tile packs BLOCK_M // group query tokens times the heads of a group, so K and V are read once for the group.
Tiles above the diagonal, and those before the window, are skipped; only tiles that the mask cuts are masked.
Heavy tiles start first. Long plain chunks are the library's (library_attention.py); everything else is this
kernel's. Bound by matrix arithmetic. Sources: Dao, arXiv 2307.08691;
Ringlein et al., arXiv 2511.11581.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from baton.kernels.launch import tl, triton, upcasts_dot
from baton.kernels.launch_table import PrefillLaunch, heads_of, launches_on

if TYPE_CHECKING:
    from baton.kernels.attention_batch import AttentionBatch


def prefill_attention(
    q: Tensor,
    kv_layer: Tensor,
    batch: AttentionBatch,
    out: Tensor,
    *,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    longest: int = 1 << 30,
    launch: PrefillLaunch | None = None,
) -> None:
    """Attend for the sequences after the decodes; writes their rows of `out` [tokens, heads, head_dim].

    Sequences of more than `longest` query tokens are left out: their rows stay as they are.
    """
    launch = launch or launches_on(q.device).prefill[heads_of(q)]
    num_heads, head_dim = q.shape[1:]
    block_size, num_kv_heads = kv_layer.shape[2:4]
    group = num_heads // num_kv_heads
    num_seqs = batch.num_seqs - batch.num_decodes
    block_m = max(launch.block_m, triton.next_power_of_2(group))
    block_d = max(16, triton.next_power_of_2(head_dim))
    # A sequence's first tile is its first query's over the tile's tokens, plus its index: no list, and at
    # most one tile a sequence empty.
    num_tiles = q.shape[0] // (block_m // group) + num_seqs
    _prefill_kernel[(num_kv_heads, num_tiles)](
        q,
        kv_layer,
        out,
        batch.block_table,
        batch.query_start,
        batch.seq_lens,
        batch.num_decodes,
        num_seqs,
        longest,
        batch.block_table.stride(0),
        q.stride(0),
        q.stride(1),
        kv_layer.stride(0),
        kv_layer.stride(1),
        out.stride(0),
        scale,
        soft_cap or 0.0,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        WINDOW=window or 0,
        HAS_CAP=soft_cap is not None,
        BLOCK_M=block_m,
        BLOCK_D=block_d,
        BLOCK_N=launch.block_n,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        UPCAST=upcasts_dot(q),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )


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
def attend_tiles(
    acc,
    row_max,
    row_sum,
    q,
    positions_q,
    table,
    kv_ptr,
    kv_head,
    kv_stride_block,
    kv_stride_half,
    first,
    last,
    seq_len,
    scale,
    soft_cap,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    IS_CUT: tl.constexpr,
):
    """Attend to context tiles [first, last); IS_CUT: the mask cuts through them."""
    LOG2E: tl.constexpr = 1.4426950408889634
    dims = tl.arange(0, BLOCK_D)
    columns = tl.arange(0, BLOCK_N)
    for start in range(first, last, BLOCK_N):
        positions = start + columns
        if IS_CUT:
            blocks = tl.load(table + positions // BLOCK_SIZE, mask=positions < seq_len, other=0).to(tl.int64)
        else:
            blocks = tl.load(table + positions // BLOCK_SIZE).to(tl.int64)
        at = blocks * kv_stride_block + (positions % BLOCK_SIZE) * (NUM_KV_HEADS * HEAD_DIM) + kv_head * HEAD_DIM
        at = at[:, None] + dims[None, :]
        if IS_CUT:
            # Masked rows are loaded as 0: what a free slot holds may be NaN, and 0 * NaN is NaN.
            inside = (positions < seq_len)[:, None] & (dims[None, :] < HEAD_DIM)
            k = tl.load(kv_ptr + at, mask=inside, other=0.0)
            v = tl.load(kv_ptr + kv_stride_half + at, mask=inside, other=0.0)
        elif BLOCK_D == HEAD_DIM:
            k = tl.load(kv_ptr + at)
            v = tl.load(kv_ptr + kv_stride_half + at)
        else:
            k = tl.load(kv_ptr + at, mask=dims[None, :] < HEAD_DIM, other=0.0)
            v = tl.load(kv_ptr + kv_stride_half + at, mask=dims[None, :] < HEAD_DIM, other=0.0)
        if UPCAST:
            k, v = k.to(tl.float32), v.to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if HAS_CAP:
            scores = soft_cap * (1.0 - 2.0 / (tl.exp(scores * (2.0 * scale / soft_cap)) + 1.0)) * LOG2E
        else:
            scores = scores * (scale * LOG2E)
        if IS_CUT:
            visible = positions[None, :] <= positions_q[:, None]
            if WINDOW > 0:
                visible = visible & (positions[None, :] > positions_q[:, None] - WINDOW)
            scores = tl.where(visible, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, axis=1))
        p = tl.exp2(scores - new_max[:, None])
        shrink = tl.exp2(row_max - new_max)
        row_sum = row_sum * shrink + tl.sum(p, axis=1)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        row_max = new_max
    return acc, row_max, row_sum


@triton.jit(do_not_specialize=["num_decodes", "num_seqs", "longest"])
def _prefill_kernel(
    q_ptr,
    kv_ptr,
    out_ptr,
    block_table_ptr,
    query_start_ptr,
    seq_lens_ptr,
    num_decodes,
    num_seqs,
    longest,
    table_stride,
    q_stride_token,
    q_stride_head,
    kv_stride_block,
    kv_stride_half,
    out_stride_token,
    scale,
    soft_cap,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    kv_head = tl.program_id(0)
    # The last tiles of a sequence see the most context: they start first, so that the end of the launch is
    # not one of them.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)

    # Where the chunks' queries begin is read on the device, as a captured step has rows for more decodes than there are.
    first_query = tl.load(query_start_ptr + num_decodes)
    low = sequence_of_tile(tile, query_start_ptr + num_decodes, first_query, num_seqs, TOKENS)
    seq = num_decodes + low
    query_begin = tl.load(query_start_ptr + seq)
    query_len = tl.load(query_start_ptr + seq + 1) - query_begin
    within = (tile - ((query_begin - first_query) // TOKENS + low)) * TOKENS
    if (within < query_len) & (query_len <= longest):
        seq_len = tl.load(seq_lens_ptr + seq)
        rows = tl.arange(0, BLOCK_M)
        dims = tl.arange(0, BLOCK_D)
        tokens = within + rows // GROUP
        heads = kv_head * GROUP + rows % GROUP
        inside = ((rows < TOKENS * GROUP) & (tokens < query_len))[:, None] & (dims[None, :] < HEAD_DIM)
        tokens_all = (query_begin + tokens).to(tl.int64)
        at_q = tokens_all[:, None] * q_stride_token + heads[:, None] * q_stride_head + dims[None, :]
        q = tl.load(q_ptr + at_q, mask=inside, other=0.0)
        if UPCAST:
            q = q.to(tl.float32)
        start = seq_len - query_len
        positions_q = start + tokens
        lowest = start + within
        highest = tl.minimum(lowest + TOKENS, seq_len) - 1
        table = block_table_ptr + seq.to(tl.int64) * table_stride

        # Context in three parts: cut by the window's start, whole, cut by the diagonal.
        whole_to = (lowest + 1) // BLOCK_N * BLOCK_N
        if WINDOW > 0:
            from_tile = tl.maximum(lowest - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
            whole_from = tl.maximum(highest - WINDOW + 1, 0)
            whole_from = tl.minimum((whole_from + BLOCK_N - 1) // BLOCK_N * BLOCK_N, highest + 1)
        else:
            from_tile = 0
            whole_from = 0
        whole_to = tl.maximum(whole_to, whole_from)

        row_max = tl.full([BLOCK_M], -1.0e30, tl.float32)
        row_sum = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        if WINDOW > 0:
            acc, row_max, row_sum = attend_tiles(
                acc,
                row_max,
                row_sum,
                q,
                positions_q,
                table,
                kv_ptr,
                kv_head,
                kv_stride_block,
                kv_stride_half,
                from_tile,
                whole_from,
                seq_len,
                scale,
                soft_cap,
                NUM_KV_HEADS,
                HEAD_DIM,
                BLOCK_SIZE,
                WINDOW,
                HAS_CAP,
                BLOCK_D,
                BLOCK_N,
                PRECISION,
                UPCAST,
                True,
            )
        acc, row_max, row_sum = attend_tiles(
            acc,
            row_max,
            row_sum,
            q,
            positions_q,
            table,
            kv_ptr,
            kv_head,
            kv_stride_block,
            kv_stride_half,
            whole_from,
            whole_to,
            seq_len,
            scale,
            soft_cap,
            NUM_KV_HEADS,
            HEAD_DIM,
            BLOCK_SIZE,
            WINDOW,
            HAS_CAP,
            BLOCK_D,
            BLOCK_N,
            PRECISION,
            UPCAST,
            False,
        )
        acc, row_max, row_sum = attend_tiles(
            acc,
            row_max,
            row_sum,
            q,
            positions_q,
            table,
            kv_ptr,
            kv_head,
            kv_stride_block,
            kv_stride_half,
            whole_to,
            highest + 1,
            seq_len,
            scale,
            soft_cap,
            NUM_KV_HEADS,
            HEAD_DIM,
            BLOCK_SIZE,
            WINDOW,
            HAS_CAP,
            BLOCK_D,
            BLOCK_N,
            PRECISION,
            UPCAST,
            True,
        )
        o = acc / tl.maximum(row_sum, 1.0e-30)[:, None]
        at_o = tokens_all[:, None] * out_stride_token + heads[:, None] * HEAD_DIM + dims[None, :]
        tl.store(out_ptr + at_o, o.to(out_ptr.dtype.element_ty), mask=inside)
