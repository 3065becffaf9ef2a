"""Checksums of KV blocks where they lie on a GPU, so that a block which a peer copied can be compared with its original.

blocks [num_blocks, block bytes] (bytes, a multiple of WORD_NBYTES), block_ids [n] -> sums [n, PARTS, 2] int64, which are to be
added up over the parts. With l and h the halves, of 32 bits, of the words of a block and i their places, sum k is
sum_i (l_i ^ i * A ^ B_k) * (h_i ^ i * C ^ D_k)  modulo 2**64. Of a damaged half the other is not 0 in both sums, so that it is
always seen; other damage, exchanged or stale words too, is missed less than once in 2**60. It finds accidents; who may send
is proved elsewhere. Source: NH, of Black, Halevi, Krawczyk, Krovetz and Rogaway, "UMAC", 1999, with fixed keys.

Bound by memory: a word of 8 bytes costs some 12 integer instructions. Two bijections of each half, which this had before, cost
five times as many, and bound a message of 64 MiB to 35 us of a whole H100 at its full clock, and to 0.2 ms where it idles. A
block is summed by PARTS programs side by side, so that few blocks fill a GPU too.
"""

import torch
from torch import Tensor

from baton.kernels.launch import on_triton, tl, triton

WORD_NBYTES = 8
PARTS = 8
_LOW = 0xFFFF_FFFF
_PLACES = 0x9E37_79B1, 0x85EB_CA77
"""A and C."""
_LANES = ((0x7F4A_7C15, 0x27D4_EB2F), (0x1656_67B1, 0xC2B2_AE3D))
"""B and D of the two sums."""


def block_sums_reference(blocks: Tensor, block_ids: Tensor) -> Tensor:
    """Sum in plain torch; [n, 2], the parts added up."""
    words = blocks[block_ids.long()].view(torch.int64)
    places = torch.arange(words.shape[1], device=blocks.device)
    low, high = (
        half ^ (places * a & _LOW) for half, a in zip((words & _LOW, words >> 32 & _LOW), _PLACES, strict=True)
    )
    return torch.stack([((low ^ b) * (high ^ d)).sum(1) for b, d in _LANES], 1)


def block_sums(blocks: Tensor, block_ids: Tensor, sums: Tensor) -> None:
    """Write the sums of blocks [num_blocks, block bytes] with these ids [n] int32 into sums [n, PARTS, 2] int64.

    `block_ids` and `sums` may lie in pinned host memory: the kernel reads and writes them there.
    """
    if on_triton(blocks):
        words = blocks.shape[1] // WORD_NBYTES
        grid = len(block_ids), PARTS
        _sum_kernel[grid](blocks.view(torch.int64), block_ids, sums, words, TILE=_TILE, num_warps=16)
    else:
        sums.zero_()
        sums[:, 0] = block_sums_reference(blocks, block_ids)


# --- Triton -----------------------------------------------------------------------------------------

# 8 words a thread: four loads of 16 bytes are on the way at once.
_TILE = 4096


@triton.jit
def _sum_kernel(words_ptr, ids_ptr, sums_ptr, num_words, TILE: tl.constexpr):
    at, part, num_parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    begin = words_ptr + tl.load(ids_ptr + at).to(tl.int64) * num_words
    first = tl.zeros((TILE,), dtype=tl.uint64)
    second = tl.zeros((TILE,), dtype=tl.uint64)
    for start in range(part * TILE, num_words, num_parts * TILE):
        places = start + tl.arange(0, TILE)
        inside = places < num_words
        words = tl.load(begin + places, mask=inside, other=0).to(tl.uint64, bitcast=True)
        index = places.to(tl.uint32, bitcast=True)
        low = words.to(tl.uint32) ^ (index * 0x9E3779B1)
        high = (words >> 32).to(tl.uint32) ^ (index * 0x85EBCA77)
        a = (low ^ 0x7F4A7C15).to(tl.uint64) * (high ^ 0x27D4EB2F).to(tl.uint64)
        b = (low ^ 0x165667B1).to(tl.uint64) * (high ^ 0xC2B2AE3D).to(tl.uint64)
        first += tl.where(inside, a, 0)
        second += tl.where(inside, b, 0)
    to = sums_ptr + (at * num_parts + part) * 2
    tl.store(to, tl.sum(first, 0).to(tl.int64, bitcast=True))
    tl.store(to + 1, tl.sum(second, 0).to(tl.int64, bitcast=True))
