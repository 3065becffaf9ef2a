"""Rotary positions, with the optional norm of q and k before and the cache write after, in one pass.

Each head h of q and k: h = rms_norm(h) * (norm_offset + w) (Qwen3, Gemma 3; only where a norm weight is given), then its
first rot_dim dimensions turn, pairs (a, b) of them: a' = a cos - b sin, b' = b cos + a sin. Pair i is dimensions i and
i + rot_dim / 2 (NeoX form), or 2 i and 2 i + 1 (GPT-J form, `interleaved`). K and V go to their slots of the paged cache. q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim], views of
the fused projection (rows strided, heads packed); cos_sin [max_positions, 2, rot_dim // 2] fp32; positions,
slots [tokens] int64; kv_layer [num_blocks, 2, block_size, kv_heads, head_dim]. Arithmetic in fp32, rounded
once. Bound by memory: q, k, v in, q and the cache out. Source: Su et al., arXiv 2104.09864.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from baton.kernels.kv_write import kv_write_reference
from baton.kernels.launch import on_triton, overlap, start_next, tl, triton, wait_for_previous
from baton.kernels.rms_norm import rms_norm_reference


def rotate_reference(x: Tensor, cos_sin: Tensor, positions: Tensor, interleaved: bool = False) -> Tensor:
    """Turn the first rot_dim dimensions of every head: a new tensor [tokens, heads, head_dim]."""
    num_tokens, num_heads, head_dim = x.shape
    half = cos_sin.shape[2]
    turn = cos_sin.index_select(0, positions)[:, None]  # [tokens, 1, 2, half]
    cos, sin = turn[:, :, :1], turn[:, :, 1]
    if interleaved:
        a, b = x[..., : 2 * half : 2], x[..., 1 : 2 * half : 2]  # [tokens, heads, half]
        cos = cos[:, :, 0]
        both = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(2).to(x.dtype)
        return both if 2 * half == head_dim else torch.cat([both, x[..., 2 * half :]], dim=-1)
    pairs = x[..., : 2 * half].view(num_tokens, num_heads, 2, half)  # [tokens, heads, 2, half]
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
    norm_offset: float = 0.0,
    interleaved: bool = False,
) -> Tensor:
    """Norm, turn and write in plain torch."""
    if q_norm is not None:
        q = rms_norm_reference(q, q_norm, eps, norm_offset)
    if k_norm is not None:
        k = rms_norm_reference(k, k_norm, eps, norm_offset)
    both = _as_one(q, k)
    if both is None:
        q, k = (rotate_reference(each, cos_sin, positions, interleaved) for each in (q, k))
    else:
        q, k = rotate_reference(both, cos_sin, positions, interleaved).split_with_sizes((q.shape[1], k.shape[1]), 1)
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
    norm_offset: float = 0.0,
    interleaved: bool = False,
) -> Tensor:
    """Return the rotated q, [tokens, heads, head_dim] (rows may be strided), and put rotated K, and V, into the cache."""
    if not on_triton(q, "rotary_kv_write"):
        given = (q, k, v, cos_sin, positions, kv_layer, slots)
        norms = {"q_norm": q_norm, "k_norm": k_norm, "eps": eps, "norm_offset": norm_offset}
        return rotary_kv_write_reference(*given, **norms, interleaved=interleaved)  # type: ignore[arg-type]
    num_tokens, num_heads, head_dim = q.shape
    turned = torch.empty((num_tokens, num_heads, head_dim), dtype=q.dtype, device=q.device)
    if num_tokens == 0:
        return turned
    shape = _Shape(num_heads, k.shape[1], head_dim, cos_sin.shape[2], kv_layer.shape[2], interleaved)
    block_heads, block_half = triton.next_power_of_2(num_heads), triton.next_power_of_2(shape.half)
    # Two programs a token, its queries and its keys with values: 16 elements a thread for 32 heads of 128.
    _rotary_kernel[(num_tokens, 2)](
        q,
        k,
        v,
        turned,
        cos_sin,
        positions,
        kv_layer,
        slots,
        q if q_norm is None else q_norm,
        k if k_norm is None else k_norm,
        (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *kv_layer.stride()[:2]),
        eps,
        norm_offset,
        SHAPE=shape,
        HAS_NORMS=(q_norm is not None, k_norm is not None),
        BLOCK_HEADS=(block_heads, triton.next_power_of_2(shape.num_kv_heads)),
        BLOCK_HALF=block_half,
        BLOCK_REST=triton.next_power_of_2(max(1, head_dim - 2 * shape.half)),
        BLOCK_DIM=triton.next_power_of_2(head_dim),
        num_warps=min(8, max(1, block_heads * block_half // 512)),
        **overlap(num_tokens, q.device),
    )
    return turned


class _Shape(NamedTuple):
    """What of heads and cache the kernel is compiled for."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    half: int  # of what turns of a head
    block_size: int
    interleaved: bool


# --- Triton -----------------------------------------------------------------------------------------


@triton.jit
def _turn_heads(
    from_ptr,
    from_stride_head,
    to_ptr,
    turn_ptr,
    norm_ptr,
    eps,
    norm_offset,
    NUM_HEADS: tl.constexpr,
    SHAPE: tl.constexpr,
    HAS_NORM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    """Norm and turn one token's heads from one place to another, where they are packed."""
    HEAD_DIM: tl.constexpr = SHAPE.head_dim
    HALF: tl.constexpr = SHAPE.half
    # Where the second of a pair lies behind the first, and the next pair behind a pair.
    APART: tl.constexpr = 1 if SHAPE.interleaved else HALF
    NEXT: tl.constexpr = 2 if SHAPE.interleaved else 1
    dtype = to_ptr.dtype.element_ty
    heads = tl.arange(0, BLOCK_HEADS)[:, None]
    pairs = tl.arange(0, BLOCK_HALF)[None, :]
    inside = (heads < NUM_HEADS) & (pairs < HALF)
    first = pairs * NEXT
    a = tl.load(from_ptr + heads * from_stride_head + first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(from_ptr + heads * from_stride_head + first + APART, mask=inside, other=0.0).to(tl.float32)
    rest = 2 * HALF + tl.arange(0, BLOCK_REST)[None, :]
    inside_rest = (heads < NUM_HEADS) & (rest < HEAD_DIM)
    if 2 * HALF < HEAD_DIM:
        c = tl.load(from_ptr + heads * from_stride_head + rest, mask=inside_rest, other=0.0).to(tl.float32)
    if HAS_NORM:
        squares = tl.sum(a * a + b * b, axis=1)
        if 2 * HALF < HEAD_DIM:
            squares += tl.sum(c * c, axis=1)
        scale = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
        # The reference rounds between norm and rotation, as every published model does.
        of_a = tl.load(norm_ptr + first, mask=pairs < HALF, other=0.0).to(tl.float32)
        of_b = tl.load(norm_ptr + first + APART, mask=pairs < HALF, other=0.0).to(tl.float32)
        a = a * scale * (norm_offset + of_a)
        b = b * scale * (norm_offset + of_b)
        a = a.to(from_ptr.dtype.element_ty).to(tl.float32)
        b = b.to(from_ptr.dtype.element_ty).to(tl.float32)
        if 2 * HALF < HEAD_DIM:
            of_c = tl.load(norm_ptr + rest, mask=rest < HEAD_DIM, other=0.0).to(tl.float32)
            c = c * scale * (norm_offset + of_c)
    cos = tl.load(turn_ptr + pairs, mask=pairs < HALF, other=0.0)
    sin = tl.load(turn_ptr + HALF + pairs, mask=pairs < HALF, other=0.0)
    tl.store(to_ptr + heads * HEAD_DIM + first, (a * cos - b * sin).to(dtype), mask=inside)
    tl.store(to_ptr + heads * HEAD_DIM + first + APART, (b * cos + a * sin).to(dtype), mask=inside)
    if 2 * HALF < HEAD_DIM:
        tl.store(to_ptr + heads * HEAD_DIM + rest, c.to(dtype), mask=inside_rest)


@triton.jit(do_not_specialize_on_alignment=["positions_ptr", "slots_ptr"])
def _rotary_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    turned_ptr,
    cos_sin_ptr,
    positions_ptr,
    kv_ptr,
    slots_ptr,
    q_norm_ptr,
    k_norm_ptr,
    strides,
    eps,
    norm_offset,
    SHAPE: tl.constexpr,
    HAS_NORMS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next(OVERLAP)
    wait_for_previous(OVERLAP)
    q_token, q_head, k_token, k_head, v_token, v_head, kv_block, kv_half = strides
    HEAD_DIM: tl.constexpr = SHAPE.head_dim
    NUM_KV_HEADS: tl.constexpr = SHAPE.num_kv_heads
    BLOCK_KV_HEADS: tl.constexpr = BLOCK_HEADS[1]
    token = tl.program_id(0).to(tl.int64)
    turn_ptr = cos_sin_ptr + tl.load(positions_ptr + token) * (2 * SHAPE.half)
    if tl.program_id(1) == 0:
        _turn_heads(
            q_ptr + token * q_token,
            q_head,
            turned_ptr + token * (SHAPE.num_heads * HEAD_DIM),
            turn_ptr,
            q_norm_ptr,
            eps,
            norm_offset,
            SHAPE.num_heads,
            SHAPE,
            HAS_NORMS[0],
            BLOCK_HEADS[0],
            BLOCK_HALF,
            BLOCK_REST,
        )
    else:
        slot = tl.load(slots_ptr + token)
        to_ptr = kv_ptr + slot // SHAPE.block_size * kv_block + slot % SHAPE.block_size * (NUM_KV_HEADS * HEAD_DIM)
        _turn_heads(
            k_ptr + token * k_token,
            k_head,
            to_ptr,
            turn_ptr,
            k_norm_ptr,
            eps,
            norm_offset,
            NUM_KV_HEADS,
            SHAPE,
            HAS_NORMS[1],
            BLOCK_KV_HEADS,
            BLOCK_HALF,
            BLOCK_REST,
        )
        heads = tl.arange(0, BLOCK_KV_HEADS)[:, None]
        within = tl.arange(0, BLOCK_DIM)[None, :]
        inside = (heads < NUM_KV_HEADS) & (within < HEAD_DIM)
        v = tl.load(v_ptr + token * v_token + heads * v_head + within, mask=inside)
        to = to_ptr + kv_half + heads * HEAD_DIM + within
        tl.store(to, v.to(kv_ptr.dtype.element_ty), mask=inside)
