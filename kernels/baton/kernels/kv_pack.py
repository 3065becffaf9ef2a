"""Gather cache blocks into one contiguous piece, for transfer, and scatter such a piece back.

packed[i] = kv[block_ids[i]]. kv [num_blocks, ...] block-major (one block holds all its layers contiguously: 2
MiB for an 8B model); block_ids [n] int64; packed [n, ...]. Bound by memory: each byte read once and written
once.
"""

import torch
from torch import Tensor

from baton.kernels.launch import on_triton, tl, triton


def kv_pack_reference(kv: Tensor, block_ids: Tensor, out: Tensor | None = None) -> Tensor:
    """Gather in plain torch."""
    return torch.index_select(kv, 0, block_ids, out=out) if out is not None else kv.index_select(0, block_ids)


def kv_unpack_reference(packed: Tensor, kv: Tensor, block_ids: Tensor) -> None:
    """Scatter in plain torch."""
    kv.index_copy_(0, block_ids, packed)


def kv_pack(kv: Tensor, block_ids: Tensor, out: Tensor | None = None) -> Tensor:
    """Give the blocks `block_ids`, contiguous, in `out` where given ([n, ...], as kv's blocks)."""
    if not on_triton(kv):
        return kv_pack_reference(kv, block_ids, out)
    if out is None:
        out = torch.empty((block_ids.shape[0], *kv.shape[1:]), dtype=kv.dtype, device=kv.device)
    _launch(kv, out, block_ids, True)
    return out


def kv_unpack(packed: Tensor, kv: Tensor, block_ids: Tensor) -> None:
    """Put packed[i] at block block_ids[i]; ids must be distinct."""
    if on_triton(kv):
        _launch(kv, packed, block_ids, False)
    else:
        kv_unpack_reference(packed, kv, block_ids)


# --- Triton -----------------------------------------------------------------------------------------

# 64 bytes a thread in flight: a program moves 8 KiB in four 16-byte accesses a thread.
_BLOCK_WORDS = 2048


def _as_words(x: Tensor) -> Tensor:
    """View [blocks, ...] as rows of 4-byte words where a block's bytes allow, so that any dtype moves alike."""
    rows = x.view(x.shape[0], -1)
    return rows.view(torch.int32) if rows.shape[1] * rows.element_size() % 4 == 0 else rows


def _launch(kv: Tensor, packed: Tensor, block_ids: Tensor, is_pack: bool) -> None:
    if block_ids.shape[0] == 0:
        return
    blocks, pieces = _as_words(kv), _as_words(packed)
    length = blocks.shape[1]
    grid = (block_ids.shape[0], triton.cdiv(length, _BLOCK_WORDS))
    _move_kernel[grid](blocks, pieces, block_ids, length, IS_PACK=is_pack, BLOCK=_BLOCK_WORDS, num_warps=4)


@triton.jit
def _move_kernel(blocks_ptr, pieces_ptr, ids_ptr, length, IS_PACK: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    block = tl.load(ids_ptr + i).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < length
    if IS_PACK:
        x = tl.load(blocks_ptr + block * length + columns, mask=inside)
        tl.store(pieces_ptr + i * length + columns, x, mask=inside)
    else:
        x = tl.load(pieces_ptr + i * length + columns, mask=inside)
        tl.store(blocks_ptr + block * length + columns, x, mask=inside)
