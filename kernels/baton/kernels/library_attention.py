"""Attention of long prompt chunks by cuDNN, over K and V gathered from the paged cache.

On an H200 cuDNN reaches 590 to 620 TFLOP/s at 8k to 32k tokens where prefill_attention's kernel reaches 385
and torch's flash attention with variable lengths 330; the gather costs 20 us for 8k tokens, 2 % of the
attention. But it builds a plan for each pair of lengths that it has not seen, which takes 40 to 60 ms: so it sees few. A
chunk's own keys, with those before it down to a multiple of 512, are one causal call padded to a multiple of 512; what is
before them is cut into powers of two, each a call without a mask; all are joined by their log-sum-exps.

Not for windows, soft caps, slopes, sinks, fp32 or wide heads. Whether the installed cuDNN takes the shape is tried once,
against plain arithmetic; where it does not, or is not right, the kernel of prefill_attention does all.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from baton.kernels.attention_batch import AttentionBatch
from baton.kernels.join_attention import join_attention

# From here on the library's lead is worth its gather and its launches for each sequence: 101 us against 114 at 2k, but
# 685 against 553 at sixteen chunks of 1k.
SHORTEST_QUERY_LEN = 2048
_LENGTH_STEP = 512


def shortest_query_len(
    q: Tensor,
    kv_layer: Tensor,
    window: int | None,
    soft_cap: float | None,
    slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> int:
    """Return the query length from which chunks are the library's; larger than any where they are not."""
    is_plain = window is None and soft_cap is None and slopes is None and sinks is None
    is_plain = is_plain and q.is_cuda and q.element_size() == 2
    if is_plain and q.shape[2] % 8 == 0 and q.shape[2] <= 128 and _LENGTH_STEP % kv_layer.shape[2] == 0:
        shape = (q.device, q.dtype, q.shape[1], kv_layer.shape[3], q.shape[2])
        if not torch.cuda.is_current_stream_capturing() and _is_usable(*shape):
            return SHORTEST_QUERY_LEN
    return 1 << 30


def attend_chunk(
    q: Tensor, kv_layer: Tensor, batch: AttentionBatch, seq: int, scale: float, out: Tensor | None = None
) -> Tensor:
    """Attend for one sequence; q is its rows, [queries, heads, head_dim]; the result goes to `out` if there is one."""
    seq_len = batch.seq_lens_host[seq]
    table = batch.block_table[seq]
    start = seq_len - q.shape[0]
    first = start // _LENGTH_STEP * _LENGTH_STEP
    # As many queries without meaning go before the chunk's as it has keys before its own: the mask starts in a corner.
    rows = slice(start - first, seq_len - first)
    queries = _padded(q, rows)
    own = _gather(kv_layer, table, first, seq_len, queries.shape[0])
    o, log_sum = _call(queries, *own, scale, True)
    o, log_sum = o[rows], log_sum[rows]
    for begin, end in _powers_of_two(first):
        before, before_sum = _call(queries, *_gather(kv_layer, table, begin, end, end - begin), scale, False)
        to = o if out is None else out
        log_sum = join_attention(o, log_sum, before[rows], before_sum[rows], to)
        o = to
    return o if out is None or o is out else out.copy_(o)


def _padded(q: Tensor, rows: slice) -> Tensor:
    """Put q at `rows` of zeros that are as long as a multiple of the step."""
    length = -(-rows.stop // _LENGTH_STEP) * _LENGTH_STEP
    if length == q.shape[0]:
        return q
    queries = q.new_zeros((length, *q.shape[1:]))
    queries[rows] = q
    return queries


def _gather(kv_layer: Tensor, table: Tensor, begin: int, end: int, length: int) -> tuple[Tensor, Tensor]:
    """Gather K and V of positions [begin, end), each [length, kv_heads, head_dim], then zeros: what is masked must be finite."""
    _, _, block_size, num_kv_heads, head_dim = kv_layer.shape
    block_ids = table[begin // block_size : -(-end // block_size)]
    gathered = kv_layer.new_empty((2, length, num_kv_heads, head_dim))
    spaces = gathered[:, : len(block_ids) * block_size].view(2, -1, block_size, num_kv_heads, head_dim)
    for half, space in enumerate(spaces):
        torch.index_select(kv_layer[:, half], 0, block_ids, out=space)
    gathered[:, end - begin :] = 0
    return gathered[0], gathered[1]


def _powers_of_two(end: int) -> Iterator[tuple[int, int]]:
    """Cut [0, end) into pieces whose lengths are powers of two, the longest first."""
    begin = 0
    while begin < end:
        length = 1 << ((end - begin).bit_length() - 1)
        yield begin, begin + length
        begin += length


def _call(q: Tensor, k: Tensor, v: Tensor, scale: float, is_causal: bool) -> tuple[Tensor, Tensor]:
    """Compute cuDNN's output [queries, heads, head_dim] and log-sum-exp [queries, heads] fp32."""
    batched = (x.transpose(0, 1)[None] for x in (q, k, v))
    o, log_sum, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *batched, None, True, 0.0, is_causal, False, scale=scale
    )
    return o[0].transpose(0, 1), log_sum.reshape(q.shape[1], q.shape[0]).transpose(0, 1).float()


@cache
def _is_usable(device: torch.device, dtype: torch.dtype, num_heads: int, num_kv_heads: int, head_dim: int) -> bool:
    """Try a chunk after a prefix, and compare it with plain arithmetic in fp32."""
    generator = torch.Generator(device).manual_seed(0)
    queries, context = 96, 224
    q, k, v = (
        torch.randn(n, heads, head_dim, generator=generator, device=device, dtype=dtype)
        for n, heads in ((queries, num_heads), (context, num_kv_heads), (context, num_kv_heads))
    )
    scale = head_dim**-0.5
    start = context - queries
    o = torch.empty_like(q)
    try:
        join_attention(*_call(q, k[start:], v[start:], scale, True), *_call(q, k[:start], v[:start], scale, False), o)
    except RuntimeError:
        return False
    group = num_heads // num_kv_heads
    k, v = (x.float().repeat_interleave(group, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), k) * scale
    at = torch.arange(start, context, device=device)[:, None]
    scores.masked_fill_(torch.arange(context, device=device) > at, float("-inf"))
    expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
    return bool((o.float() - expected).norm() < 0.02 * expected.norm())
