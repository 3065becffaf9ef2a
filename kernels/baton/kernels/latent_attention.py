"""Attention over a cache of latents: one vector a token that all heads share, as key whole and as value its first part.

o_i = softmax(scale * q_i C^T) C[:, :rank] over the rows C of the cache that query i may see: its sequence's, up to its own
position. q [tokens, heads, width], whose first `rank` numbers have each head's key matrix in them already (DeepSeek's absorbed
form), so that no key or value of a head is ever made; latents [num_blocks, 1, block_size, 1, width], one layer of the
block-major cache, which already holds the step's own; returns [tokens, heads, rank], of which each head's value matrix makes
its output. DeepSeek-V3 has 128 heads, width 576, rank 512: a cached token of 1152 bytes (bf16) meets 128 * 2 * (576 + 512)
operations, 242 a byte, so that on a GPU decodes are bound by bytes and by arithmetic about alike, and chunks by arithmetic.
Source: DeepSeek-V2, arXiv:2405.04434.
"""

from __future__ import annotations

import torch
from torch import Tensor

from baton.kernels.attention_batch import AttentionBatch

# Rows of explicit scores are cut so that they take at most so many bytes.
_SCORES_NBYTES = 64 << 20


def latent_write(x: Tensor, latents: Tensor, slots: Tensor) -> None:
    """Put each token's vector, of x [tokens, width], at its slot of one layer's cache; slots [tokens] int64."""
    block_size = latents.shape[2]
    latents[slots.floor_divide(block_size), 0, slots % block_size, 0] = x.to(latents.dtype)


def latent_attention(q: Tensor, latents: Tensor, batch: AttentionBatch, *, scale: float, rank: int) -> Tensor:
    """Attend in plain torch, a sequence at a time, in fp32: on a CPU, and for now on a GPU too."""
    out = torch.empty((*q.shape[:2], rank), dtype=q.dtype, device=q.device)
    first = 0
    for seq, (query_len, seq_len) in enumerate(zip(batch.query_lens_host, batch.seq_lens_host, strict=True)):
        block_ids = batch.block_table[seq, : -(-seq_len // latents.shape[2])]
        # Only what is the sequence's: behind its end another one's numbers may not be finite.
        context = latents[:, 0, :, 0].index_select(0, block_ids).flatten(0, 1)[:seq_len].float()  # [context, width]
        last = first + query_len
        _attend(q[first:last], context, scale, out[first:last])
        first = last
    return out


def _attend(q: Tensor, context: Tensor, scale: float, out: Tensor) -> None:
    """Attend with the last queries of one sequence, some at a time."""
    query_len, num_heads, _ = q.shape
    rank, seq_len = out.shape[2], len(context)
    step = max(1, _SCORES_NBYTES // (4 * num_heads * max(1, seq_len)))
    for i in range(0, query_len, step):
        rows = q[i : i + step]
        scores = torch.matmul(rows.flatten(0, 1).float(), context.t()).view(len(rows), num_heads, seq_len).mul_(scale)
        if query_len > 1:
            at = torch.arange(len(rows), device=q.device) + (seq_len - query_len + i)
            hidden = torch.arange(seq_len, device=q.device) > at[:, None]
            scores.masked_fill_(hidden[:, None], float("-inf"))
        out[i : i + step] = torch.matmul(scores.softmax(-1), context[:, :rank])
