"""Gather cache blocks into one contiguous piece, for transfer, and scatter such a piece back.

packed[i] = kv[block_ids[i]]. kv [num_blocks, ...] block-major (one block holds all its layers contiguously: 2 MiB for an 8B model);
block_ids [n] int64; packed [n, ...]. Bound by memory: each byte read once and written once.
"""

import torch
from torch import Tensor

from baton.kernels.launch import on_triton


def kv_pack_reference(kv: Tensor, block_ids: Tensor, out: Tensor | None = None) -> Tensor:
    """Gather in plain torch."""
    return torch.index_select(kv, 0, block_ids, out=out) if out is not None else kv.index_select(0, block_ids)


def kv_unpack_reference(packed: Tensor, kv: Tensor, block_ids: Tensor) -> None:
    """Scatter in plain torch."""
    kv.index_copy_(0, block_ids, packed)


def kv_pack(kv: Tensor, block_ids: Tensor, out: Tensor | None = None) -> Tensor:
    """Give the blocks `block_ids`, contiguous, in `out` where given ([n, ...], as kv's blocks)."""
    return kv_pack_reference(kv, block_ids, out)


def kv_unpack(packed: Tensor, kv: Tensor, block_ids: Tensor) -> None:
    """Put packed[i] at block block_ids[i]; ids must be distinct."""
    kv_unpack_reference(packed, kv, block_ids)
