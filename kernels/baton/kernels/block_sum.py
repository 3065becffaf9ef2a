"""Checksums of KV blocks where they lie on a GPU, so that a block which a peer copied can be compared with its original.

blocks [num_blocks, block bytes] (bytes, a multiple of 4), block_ids [n] -> sums [n, PARTS, 2] int64, which are to be added up
over the parts. With w the words of 4 bytes of a block and i their places, sum k is  sum_i mix((w_i ^ i * A_k) + B_k)  modulo
2**64, where mix is a bijection of 32 bits: any one damaged word is always seen, and other damage, exchanged or stale words
too, is missed once in about 2**66. It finds accidents; who may send is proved elsewhere. Source of mix: Appleby's MurmurHash3
(fmix32), public domain.

Each byte is read once, but a word costs some 28 integer instructions, of which a multiprocessor does 64 a cycle: 2 MiB take
one of them 135 us. So a block is summed by PARTS programs side by side: 32 blocks then fill a GPU, for about 35 us.
"""

import torch
from torch import Tensor

from baton.kernels.launch import on_triton, tl, triton

_LOW = 0xFFFF_FFFF
_LANES = ((0x9E37_79B1, 0x7F4A_7C15), (0x85EB_CA77, 0x27D4_EB2F))
"""A and B of the two sums."""
PARTS = 8


def block_sums_reference(blocks: Tensor, block_ids: Tensor) -> Tensor:
    """Sum in plain torch; [n, 2], the parts added up."""
    words = blocks[block_ids.long()].view(torch.int32).long() & _LOW
    places = torch.arange(words.shape[1], device=blocks.device)
    return torch.stack([_mix(((words ^ (places * a & _LOW)) + b) & _LOW).sum(1) for a, b in _LANES], 1)


def block_sums(blocks: Tensor, block_ids: Tensor, sums: Tensor) -> None:
    """Write the sums of blocks [num_blocks, block bytes] with these ids [n] int32 into sums [n, PARTS, 2] int64.

    `block_ids` and `sums` may lie in pinned host memory: the kernel reads and writes them there.
    """
    if on_triton(blocks):
        words = blocks.shape[1] // 4
        grid = len(block_ids), PARTS
        _sum_kernel[grid](blocks.view(torch.int32), block_ids, sums, words, TILE=_TILE, num_warps=16)
    else:
        sums.zero_()
        sums[:, 0] = block_sums_reference(blocks, block_ids)


def _mix(x: Tensor) -> Tensor:
    x = ((x ^ (x >> 16)) * 0x85EB_CA6B) & _LOW
    x = ((x ^ (x >> 13)) * 0xC2B2_AE35) & _LOW
    return x ^ (x >> 16)


# --- Triton -----------------------------------------------------------------------------------------

# 16 words a thread: four loads of 16 bytes are on the way at once.
_TILE = 8192


@triton.jit
def _mix_words(x):
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def _sum_kernel(words_ptr, ids_ptr, sums_ptr, num_words, TILE: tl.constexpr):
    at, part, num_parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    begin = words_ptr + tl.load(ids_ptr + at).to(tl.int64) * num_words
    first = tl.zeros((TILE,), dtype=tl.uint64)
    second = tl.zeros((TILE,), dtype=tl.uint64)
    for start in range(part * TILE, num_words, num_parts * TILE):
        places = start + tl.arange(0, TILE)
        inside = places < num_words
        words = tl.load(begin + places, mask=inside, other=0).to(tl.uint32, bitcast=True)
        index = places.to(tl.uint32, bitcast=True)
        a = _mix_words((words ^ (index * 0x9E3779B1)) + 0x7F4A7C15)
        b = _mix_words((words ^ (index * 0x85EBCA77)) + 0x27D4EB2F)
        first += tl.where(inside, a, 0).to(tl.uint64)
        second += tl.where(inside, b, 0).to(tl.uint64)
    to = sums_ptr + (at * num_parts + part) * 2
    tl.store(to, tl.sum(first, 0).to(tl.int64, bitcast=True))
    tl.store(to + 1, tl.sum(second, 0).to(tl.int64, bitcast=True))
