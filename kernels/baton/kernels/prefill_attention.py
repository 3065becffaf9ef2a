"""Attention of prompt chunks of any lengths over the paged cache: one kernel for all sequences of a step.

A tile packs BLOCK_M // group query tokens times the heads of a group, so K and V are read once for the group.
Tiles above the diagonal, and those before the window, are skipped; only tiles that the mask cuts are masked.
Heavy tiles start first. Long plain chunks are the library's (library_attention.py); everything else is this
kernel's. Bound by matrix arithmetic. Sources: Dao, arXiv 2307.08691;
Ringlein et al., arXiv 2511.11581.
"""

from __future__ import annotations

from torch import Tensor

from baton.kernels.attention_batch import AttentionBatch
from baton.kernels.attention_tiles import (
    attend_tiles,
    attention_shape,
    attention_strides,
    load_sinks,
    sequence_of_tile,
    with_sinks,
)
from baton.kernels.launch import tl, triton
from baton.kernels.launch_table import PrefillLaunch, heads_of, launches_on


def prefill_attention(
    q: Tensor,
    kv_layer: Tensor,
    batch: AttentionBatch,
    out: Tensor,
    *,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    longest: int = 1 << 30,
    launch: PrefillLaunch | None = None,
) -> None:
    """Attend for the sequences after the decodes; writes their rows of `out` [tokens, heads, head_dim].

    Sequences of more than `longest` query tokens are left out: their rows stay as they are.
    """
    launch = launch or launches_on(q.device).prefill[heads_of(q)]
    shape = attention_shape(q, kv_layer, window, soft_cap, slopes, sinks)
    num_seqs = batch.num_seqs - batch.num_decodes
    block_m = max(launch.block_m, triton.next_power_of_2(shape.group))
    # A sequence's first tile is its first query's over the tile's tokens, plus its index: no list, and at
    # most one tile a sequence empty.
    num_tiles = q.shape[0] // (block_m // shape.group) + num_seqs
    _prefill_kernel[(shape.num_kv_heads, num_tiles)](
        q,
        kv_layer,
        out,
        q if sinks is None else sinks,
        batch.block_table,
        batch.query_start,
        batch.seq_lens,
        q if slopes is None else slopes,
        batch.num_decodes,
        num_seqs,
        longest,
        attention_strides(q, kv_layer, batch, out),
        scale,
        soft_cap or 0.0,
        SHAPE=shape,
        BLOCK_M=block_m,
        BLOCK_N=launch.block_n,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )


# --- Triton -----------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["num_decodes", "num_seqs", "longest"])
def _prefill_kernel(
    q_ptr,
    kv_ptr,
    out_ptr,
    sinks_ptr,
    block_table_ptr,
    query_start_ptr,
    seq_lens_ptr,
    slopes_ptr,
    num_decodes,
    num_seqs,
    longest,
    strides,
    scale,
    soft_cap,
    SHAPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    table_stride, q_stride_token, q_stride_head, _, _, out_stride_token = strides
    BLOCK_D: tl.constexpr = SHAPE.block_d
    TOKENS: tl.constexpr = BLOCK_M // SHAPE.group
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
        tokens = within + rows // SHAPE.group
        heads = kv_head * SHAPE.group + rows % SHAPE.group
        inside = ((rows < TOKENS * SHAPE.group) & (tokens < query_len))[:, None] & (dims[None, :] < SHAPE.head_dim)
        tokens_all = (query_begin + tokens).to(tl.int64)
        at_q = tokens_all[:, None] * q_stride_token + heads[:, None] * q_stride_head + dims[None, :]
        q = tl.load(q_ptr + at_q, mask=inside, other=0.0)
        if SHAPE.upcasts:
            q = q.to(tl.float32)
        start = seq_len - query_len
        positions_q = start + tokens
        lowest = start + within
        highest = tl.minimum(lowest + TOKENS, seq_len) - 1
        table = block_table_ptr + seq.to(tl.int64) * table_stride

        # Context in three parts: cut by the window's start, whole, cut by the diagonal.
        whole_to = (lowest + 1) // BLOCK_N * BLOCK_N
        if SHAPE.window > 0:
            from_tile = tl.maximum(lowest - SHAPE.window + 1, 0) // BLOCK_N * BLOCK_N
            whole_from = tl.maximum(highest - SHAPE.window + 1, 0)
            whole_from = tl.minimum((whole_from + BLOCK_N - 1) // BLOCK_N * BLOCK_N, highest + 1)
        else:
            from_tile = 0
            whole_from = 0
        whole_to = tl.maximum(whole_to, whole_from)

        slopes = tl.zeros([BLOCK_M], tl.float32)
        if SHAPE.has_slopes:
            slopes = tl.load(slopes_ptr + heads)
        row_max = tl.full([BLOCK_M], -1.0e30, tl.float32)
        row_sum = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        if SHAPE.window > 0:
            acc, row_max, row_sum = attend_tiles(
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
                from_tile,
                whole_from,
                seq_len,
                scale,
                soft_cap,
                slopes,
                SHAPE,
                BLOCK_N,
                True,
            )
        acc, row_max, row_sum = attend_tiles(
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
            whole_from,
            whole_to,
            seq_len,
            scale,
            soft_cap,
            slopes,
            SHAPE,
            BLOCK_N,
            False,
        )
        acc, row_max, row_sum = attend_tiles(
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
            whole_to,
            highest + 1,
            seq_len,
            scale,
            soft_cap,
            slopes,
            SHAPE,
            BLOCK_N,
            True,
        )
        sinks = load_sinks(sinks_ptr, heads, rows < TOKENS * SHAPE.group, SHAPE)
        o = acc / with_sinks(row_sum, row_max, sinks, SHAPE)[:, None]
        at_o = tokens_all[:, None] * out_stride_token + heads[:, None] * SHAPE.head_dim + dims[None, :]
        tl.store(out_ptr + at_o, o.to(out_ptr.dtype.element_ty), mask=inside)
