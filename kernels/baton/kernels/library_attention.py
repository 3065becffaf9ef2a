"""Attention of long prompt chunks by cuDNN, over K and V gathered from the paged cache.

On an H200 cuDNN reaches 590 to 620 TFLOP/s at 8k to 32k tokens where prefill_attention's kernel reaches 385
and torch's flash attention with variable lengths 330; the gather costs 20 us for 8k tokens, 2 % of the
attention. cuDNN's causal mask starts at the first key, so a chunk after a prefix is two calls, its own tokens
and the prefix, joined by their log-sum-exps.

Not for windows, soft caps, fp32 or wide heads. Whether the installed cuDNN takes the shape is tried once,
against plain arithmetic; where it does not, or is not right, the kernel of prefill_attention does all.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from baton.kernels.join_attention import join_attention

if TYPE_CHECKING:
    from baton.kernels.attention import AttentionBatch

# From here on the library's lead is worth its gather and its launches for each sequence (cuDNN 84 us against
# 105 at 2k).
SHORTEST_QUERY_LEN = 1024


def shortest_query_len(q: Tensor, kv_layer: Tensor, window: int | None, soft_cap: float | None) -> int:
    """Give the query length from which chunks are the library's; larger than any where they are not."""
    is_plain = window is None and soft_cap is None and q.is_cuda and q.element_size() == 2
    if is_plain and q.shape[2] % 8 == 0 and q.shape[2] <= 128:
        shape = (q.device, q.dtype, q.shape[1], kv_layer.shape[3], q.shape[2])
        if not torch.cuda.is_current_stream_capturing() and _is_usable(*shape):
            return SHORTEST_QUERY_LEN
    return 1 << 30


def attend_chunk(
    q: Tensor, kv_layer: Tensor, batch: AttentionBatch, seq: int, out: Tensor, scale: float
) -> None:
    """Attend for one sequence; q and out are its rows, [queries, heads, head_dim]."""
    seq_len = batch.seq_lens_host[seq]
    block_ids = batch.block_table[seq, : -(-seq_len // kv_layer.shape[2])]
    k, v = (kv_layer[:, half].index_select(0, block_ids).flatten(0, 1)[:seq_len] for half in (0, 1))
    _attend(q, k, v, out, scale)


def _attend(q: Tensor, k: Tensor, v: Tensor, out: Tensor, scale: float) -> None:
    """Attend causally with the last query at the last key: q [queries, heads, head_dim], k and v [context, kv_heads, head_dim]."""
    start = k.shape[0] - q.shape[0]
    own, own_sum = _call(q, k[start:], v[start:], scale, True)
    if start == 0:
        out.copy_(own)
    else:
        before, before_sum = _call(q, k[:start], v[:start], scale, False)
        join_attention(own, own_sum, before, before_sum, out)


def _call(q: Tensor, k: Tensor, v: Tensor, scale: float, is_causal: bool) -> tuple[Tensor, Tensor]:
    """Give cuDNN's output [queries, heads, head_dim] and log-sum-exp [queries, heads] fp32."""
    batched = (x.transpose(0, 1)[None] for x in (q, k, v))
    o, log_sum, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *batched, None, True, 0.0, is_causal, False, scale=scale
    )
    return o[0].transpose(0, 1), log_sum.reshape(q.shape[1], q.shape[0]).transpose(0, 1).float()


@cache
def _is_usable(
    device: torch.device, dtype: torch.dtype, num_heads: int, num_kv_heads: int, head_dim: int
) -> bool:
    """Try a chunk after a prefix, and compare it with plain arithmetic in fp32."""
    generator = torch.Generator(device).manual_seed(0)
    queries, context = 96, 224
    q, k, v = (
        torch.randn(n, heads, head_dim, generator=generator, device=device, dtype=dtype)
        for n, heads in ((queries, num_heads), (context, num_kv_heads), (context, num_kv_heads))
    )
    scale = head_dim**-0.5
    try:
        o = torch.empty_like(q)
        _attend(q, k, v, o, scale)
    except RuntimeError:
        return False
    group = num_heads // num_kv_heads
    k, v = (x.float().repeat_interleave(group, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), k) * scale
    at = torch.arange(context - queries, context, device=device)[:, None]
    scores.masked_fill_(torch.arange(context, device=device) > at, float("-inf"))
    expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
    return bool((o.float() - expected).norm() < 0.02 * expected.norm())
