"""Attention of a mixed step (decodes and prompt chunks together) over the paged, block-major cache: which code computes it.

o_i = softmax(scale * q_i K^T) V over the keys that query i may see. Query i of a sequence with context L and n queries
stands at position p = L - n + i and sees positions j <= p, with a window w only p - w < j <= p; a soft cap c turns each
score s into c * tanh(s / c), a slope m of the head adds m (j - p) to it (ALiBi). A head's sink, where the model has them, is
one more score in the softmax, to which no value belongs. q [tokens, heads, head_dim]; kv_layer
[num_blocks, 2, block_size, kv_heads, head_dim], which already holds the step's own K and V; heads is a multiple of kv_heads
(GQA). Decodes are bound by the bytes of K and V, prompt chunks by arithmetic. Sources: Dao, arXiv 2205.14135 (online
softmax); Kwon et al., arXiv 2309.06180 (paged cache); Press et al., arXiv 2108.12409 (ALiBi).
"""

import torch
from torch import Tensor

from baton.kernels.attention_batch import AttentionBatch
from baton.kernels.attention_reference import paged_attention_reference
from baton.kernels.decode_attention import decode_attention, plan_decode
from baton.kernels.launch import on_triton
from baton.kernels.library_attention import attend_chunk, shortest_query_len
from baton.kernels.prefill_attention import prefill_attention


def paged_attention(
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
    """Attend with each query over its sequence's cached context: [tokens, heads, head_dim]; slopes [heads] fp32, sinks [heads]."""
    if not on_triton(q, "paged_attention"):
        return paged_attention_reference(
            q, kv_layer, batch, scale=scale, window=window, soft_cap=soft_cap, slopes=slopes, sinks=sinks
        )
    first, num_seqs = batch.num_decodes, batch.num_seqs
    library_len = shortest_query_len(q, kv_layer, window, soft_cap, slopes, sinks) if num_seqs > first else 0
    if first == 0 and num_seqs == 1 and q.shape[0] >= library_len:
        return attend_chunk(q, kv_layer, batch, 0, scale)  # a copy would be 0.6 % of a prompt's time
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if first:
        key = ("decode", window)
        plan = batch.plans.get(key)
        if plan is None:
            plan = batch.plans[key] = plan_decode(q, kv_layer, batch, window)
        decode_attention(
            q, kv_layer, batch, plan, out, scale=scale, window=window, soft_cap=soft_cap, slopes=slopes, sinks=sinks
        )
    # Long plain chunks are the library's, each by itself; the rest is one launch of the kernel.
    lens = batch.query_lens_host[first:]
    if lens and min(lens) < library_len:
        longest = library_len - 1
        prefill_attention(
            q,
            kv_layer,
            batch,
            out,
            scale=scale,
            window=window,
            soft_cap=soft_cap,
            slopes=slopes,
            sinks=sinks,
            longest=longest,
        )
    for seq, query_len in enumerate(lens, batch.num_decodes):
        if query_len >= library_len:
            rows = slice(first, first + query_len)
            attend_chunk(q[rows], kv_layer, batch, seq, scale, out[rows])
        first += query_len
    return out
