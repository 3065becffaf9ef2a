"""Write this step's keys and values into the paged cache (models without rotary positions: GPT-2, OPT).

kv_layer[slot // block_size, 0 or 1, slot % block_size] = k or v. k, v [tokens, kv_heads, head_dim] (rows
strided); kv_layer [num_blocks, 2, block_size, kv_heads, head_dim], one layer of the block-major cache, so
strided over blocks and contiguous within one; slots [tokens] int64. Two tokens with one slot (padding, all to
the scratch block) leave either. Bound by memory.
"""

import torch
from torch import Tensor

from baton.kernels.launch import on_triton, overlap, start_next, tl, triton, wait_for_previous


def token_rows(kv_layer: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """View one layer as rows of [kv_heads, head_dim] and find each token's row for K; its V lies block_size rows on."""
    num_blocks, _, block_size, num_kv_heads, head_dim = kv_layer.shape
    width = num_kv_heads * head_dim
    step = kv_layer.stride(0) // width  # rows from one block to the next
    rows = kv_layer.as_strided(
        ((num_blocks - 1) * step + 2 * block_size, num_kv_heads, head_dim),
        (width, head_dim, 1),
        kv_layer.storage_offset(),
    )
    return rows, torch.add(slots, slots.floor_divide(block_size), alpha=step - block_size)


def kv_write_reference(k: Tensor, v: Tensor, kv_layer: Tensor, slots: Tensor) -> None:
    """Scatter K and V, two operations over one row index."""
    rows, index = token_rows(kv_layer, slots)
    rows.index_put_((index,), k)
    rows[kv_layer.shape[2] :].index_put_((index,), v)


def kv_write(k: Tensor, v: Tensor, kv_layer: Tensor, slots: Tensor) -> None:
    """Put each token's K and V at its slot of one layer's cache."""
    if not on_triton(k, "kv_write"):
        kv_write_reference(k, v, kv_layer, slots)
    elif k.shape[0]:
        _launch(k, v, kv_layer, slots)


# --- Triton -----------------------------------------------------------------------------------------


def _launch(k: Tensor, v: Tensor, kv_layer: Tensor, slots: Tensor) -> None:
    num_tokens, num_kv_heads, head_dim = k.shape
    width = num_kv_heads * head_dim
    block = triton.next_power_of_2(width)
    _kv_write_kernel[(num_tokens, 2)](
        k,
        v,
        kv_layer,
        slots,
        (*k.stride()[:2], *v.stride()[:2], *kv_layer.stride()[:2]),
        WIDTH=width,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=kv_layer.shape[2],
        BLOCK=block,
        num_warps=min(8, max(1, block // 256)),
        **overlap(num_tokens, k.device),
    )


@triton.jit(do_not_specialize_on_alignment=["slots_ptr"])
def _kv_write_kernel(
    k_ptr,
    v_ptr,
    kv_ptr,
    slots_ptr,
    strides,
    WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next(OVERLAP)
    wait_for_previous(OVERLAP)
    k_token, k_head, v_token, v_head, kv_block, kv_half = strides
    token = tl.program_id(0).to(tl.int64)
    half = tl.program_id(1)
    slot = tl.load(slots_ptr + token)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    head, within = columns // HEAD_DIM, columns % HEAD_DIM
    to = kv_ptr + slot // BLOCK_SIZE * kv_block + half * kv_half + slot % BLOCK_SIZE * WIDTH + columns
    if half == 0:
        x = tl.load(k_ptr + token * k_token + head * k_head + within, mask=inside)
    else:
        x = tl.load(v_ptr + token * v_token + head * v_head + within, mask=inside)
    tl.store(to, x.to(kv_ptr.dtype.element_ty), mask=inside)
