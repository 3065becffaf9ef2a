"""Rotary positions, with the optional norm of q and k before and the cache write after, in one pass.

Each head h of q and k: h = rms_norm(h) * w (Qwen3; only where a norm weight is given), then its first rot_dim dimensions turn,
(a, b) = halves of them: a' = a cos - b sin, b' = b cos + a sin (NeoX form); K and V go to their slots of the paged cache.
q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim], views of the fused projection (rows strided, heads packed);
cos_sin [max_positions, 2, rot_dim // 2] fp32; positions, slots [tokens] int64; kv_layer [num_blocks, 2, block_size, kv_heads,
head_dim]. Arithmetic in fp32, rounded once. Bound by memory: q, k, v in, q and the cache out. Source: Su et al., arXiv 2104.09864.
"""

import torch
from torch import Tensor

from baton.kernels.kv_write import kv_write_reference
from baton.kernels.launch import on_triton
from baton.kernels.rms_norm import rms_norm_reference


def rotate_reference(x: Tensor, cos_sin: Tensor, positions: Tensor) -> Tensor:
    """Turn the first rot_dim dimensions of every head; gives a new tensor [tokens, heads, head_dim]."""
    num_tokens, num_heads, head_dim = x.shape
    half = cos_sin.shape[2]
    turn = cos_sin.index_select(0, positions)[:, None]  # [tokens, 1, 2, half]
    cos, sin = turn[:, :, :1], turn[:, :, 1]
    pairs = x[..., : 2 * half].unflatten(-1, (2, half))  # [tokens, heads, 2, half]
    turned = pairs * cos  # fp32
    turned[:, :, 0].addcmul_(pairs[:, :, 1], sin, value=-1)
    turned[:, :, 1].addcmul_(pairs[:, :, 0], sin)
    turned = turned.view(num_tokens, num_heads, 2 * half).to(x.dtype)
    return turned if 2 * half == head_dim else torch.cat([turned, x[..., 2 * half :]], dim=-1)


def _as_one(q: Tensor, k: Tensor) -> Tensor | None:
    """View q and k as one [tokens, heads + kv_heads, head_dim] where k follows q in a fused projection: half the operations."""
    num_tokens, num_heads, _ = q.shape
    follows = q.data_ptr() + num_heads * q.stride(1) * q.element_size() == k.data_ptr()
    same = q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()
    if not (follows and same and q.stride() == k.stride() and q.dtype == k.dtype):
        return None
    return q.as_strided((num_tokens, num_heads + k.shape[1], q.shape[2]), q.stride(), q.storage_offset())


def rotary_kv_write_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    kv_layer: Tensor,
    slots: Tensor,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    weight_offset: float = 0.0,
) -> Tensor:
    """Norm, turn and write in plain torch."""
    if q_norm is not None:
        q = rms_norm_reference(q, q_norm, eps, weight_offset)
    if k_norm is not None:
        k = rms_norm_reference(k, k_norm, eps, weight_offset)
    both = _as_one(q, k)
    if both is None:
        q, k = rotate_reference(q, cos_sin, positions), rotate_reference(k, cos_sin, positions)
    else:
        q, k = rotate_reference(both, cos_sin, positions).split((q.shape[1], k.shape[1]), dim=1)
    kv_write_reference(k, v, kv_layer, slots)
    return q


def rotary_kv_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    kv_layer: Tensor,
    slots: Tensor,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    weight_offset: float = 0.0,
) -> Tensor:
    """Give the rotated q, [tokens, heads, head_dim] (rows may be strided), and put rotated K and V into the cache."""
    return rotary_kv_write_reference(
        q,
        k,
        v,
        cos_sin,
        positions,
        kv_layer,
        slots,
        q_norm=q_norm,
        k_norm=k_norm,
        eps=eps,
        weight_offset=weight_offset,
    )
