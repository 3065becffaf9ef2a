"""Write this step's keys and values into the paged cache (models without rotary positions: GPT-2, OPT).

kv_layer[slot // block_size, 0 or 1, slot % block_size] = k or v. k, v [tokens, kv_heads, head_dim] (rows strided);
kv_layer [num_blocks, 2, block_size, kv_heads, head_dim], one layer of the block-major cache, so strided over blocks and contiguous
within one; slots [tokens] int64. Two tokens with one slot (padding, all to the scratch block) leave either. Bound by memory.
"""

import torch
from torch import Tensor

from baton.kernels.launch import on_triton


def token_rows(kv_layer: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """View one layer as rows of [kv_heads, head_dim] and give each token's row for K; its V lies block_size rows on."""
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
    kv_write_reference(k, v, kv_layer, slots)
