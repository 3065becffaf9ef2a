"""Find, without a sort, each row's smallest logit that min-p, top-k and top-p keep.

A row is cut into chunks, one program each, so that one row fills the device as well as many do. Four launches: the chunks' maxima;
counts and masses above four pivots below the row's maximum; the values above the highest pivot that is surely excluded, packed
together (a few hundred of 128k, as a rule); a bisection among those. Masses are 64-bit fixed-point sums, so neither the order of atomics nor that of
packing changes anything. What is kept among equal values: sample.py. Bound by memory: three passes over the logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from baton.kernels.launch import tl, triton

if TYPE_CHECKING:
    from baton.kernels.sample import SamplingBatch

_CHUNK = 4096
_SEARCH = 2048
_PIVOTS = 4


def find_floor(logits: Tensor, inverse: Tensor, batch: SamplingBatch) -> Tensor:
    """Give each row's smallest kept scaled logit, [N]."""
    num_rows, vocab_size = logits.shape
    device = logits.device
    num_chunks = triton.cdiv(vocab_size, _CHUNK)
    grid = (num_rows, num_chunks)
    row = (logits, inverse, batch.top_k, batch.top_p, batch.min_p)
    maxima = torch.empty((num_rows, num_chunks), dtype=torch.float32, device=device)
    _max_kernel[grid](logits, inverse, maxima, logits.stride(0), vocab_size, CHUNK=_CHUNK, num_warps=8)
    floor = torch.empty(num_rows, dtype=torch.float32, device=device)
    masses = torch.zeros(
        (num_rows, _PIVOTS + 1), dtype=torch.int64, device=device
    )  # above each pivot; of all
    counts = torch.zeros(
        (num_rows, _PIVOTS + 1), dtype=torch.int32, device=device
    )  # above each pivot; packed so far
    searched = batch.any_top_k or batch.any_top_p
    candidates = torch.empty((num_rows, vocab_size if searched else 1), dtype=torch.float32, device=device)
    block = triton.next_power_of_2(num_chunks)
    if searched:
        _measure_kernel[grid](
            *row,
            maxima,
            masses,
            counts,
            logits.stride(0),
            vocab_size,
            num_chunks,
            CHUNK=_CHUNK,
            BLOCK_CHUNKS=block,
            PIVOTS=_PIVOTS,
            num_warps=8,
        )
        _pack_kernel[grid](
            *row,
            maxima,
            masses,
            counts,
            candidates,
            logits.stride(0),
            vocab_size,
            num_chunks,
            CHUNK=_CHUNK,
            BLOCK_CHUNKS=block,
            PIVOTS=_PIVOTS,
            num_warps=8,
        )
    _floor_kernel[(num_rows,)](
        batch.top_k,
        batch.top_p,
        batch.min_p,
        maxima,
        masses,
        counts,
        candidates,
        floor,
        vocab_size,
        num_chunks,
        SEARCHED=searched,
        BLOCK_CHUNKS=block,
        PIVOTS=_PIVOTS,
        BLOCK=_SEARCH,
        num_warps=8,
    )
    return floor


# --- Triton ----------------------------------------------------------------------------------------------------------


@triton.jit
def _max_kernel(logits_ptr, inverse_ptr, maxima_ptr, stride, vocab_size, CHUNK: tl.constexpr):
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token_ids = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits_ptr + row * stride + token_ids, mask=token_ids < vocab_size, other=float("-inf"))
    tl.store(maxima_ptr + row * tl.num_programs(1) + chunk, tl.max(x * tl.load(inverse_ptr + row), axis=0))


@triton.jit
def _row_max(maxima_ptr, row, num_chunks, BLOCK_CHUNKS: tl.constexpr):
    chunks = tl.arange(0, BLOCK_CHUNKS)
    return tl.max(
        tl.load(maxima_ptr + row * num_chunks + chunks, mask=chunks < num_chunks, other=float("-inf")), axis=0
    )


@triton.jit
def _pivot_depth(i):
    """Give how far below the row's maximum the i-th pivot lies, in nats."""
    return tl.where(i == 0, 2.0, tl.where(i == 1, 5.0, tl.where(i == 2, 9.0, 14.0)))


@triton.jit
def _mass(x, largest):
    """Give exp(x - largest) in units of 2^-40; x at most `largest`, -inf for nothing."""
    return (tl.exp(x - largest) * 1099511627776.0).to(tl.int64)


@triton.jit
def _measure_kernel(
    logits_ptr,
    inverse_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    maxima_ptr,
    masses_ptr,
    counts_ptr,
    stride,
    vocab_size,
    num_chunks,
    CHUNK: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if (tl.load(top_k_ptr + row) > 0) | (tl.load(top_p_ptr + row) < 1.0):
        largest = _row_max(maxima_ptr, row, num_chunks, BLOCK_CHUNKS)
        token_ids = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
        x = tl.load(logits_ptr + row * stride + token_ids, mask=token_ids < vocab_size, other=float("-inf"))
        x = x * tl.load(inverse_ptr + row)
        x = tl.where(x >= largest + tl.log(tl.load(min_p_ptr + row)), x, float("-inf"))
        mass = _mass(x, largest)
        for i in tl.static_range(PIVOTS):
            above = x > largest - _pivot_depth(i)
            count = tl.sum(above.to(tl.int32), axis=0)
            if count > 0:
                tl.atomic_add(counts_ptr + row * (PIVOTS + 1) + i, count, sem="relaxed")
                tl.atomic_add(
                    masses_ptr + row * (PIVOTS + 1) + i,
                    tl.sum(tl.where(above, mass, 0), axis=0),
                    sem="relaxed",
                )
        tl.atomic_add(masses_ptr + row * (PIVOTS + 1) + PIVOTS, tl.sum(mass, axis=0), sem="relaxed")


@triton.jit
def _target_mass(total, top_p):
    return (total.to(tl.float64) * top_p.to(tl.float64)).to(tl.int64)


@triton.jit
def _excluded(row, largest, top_k, top_p, masses_ptr, counts_ptr, PIVOTS: tl.constexpr):
    """Give the highest pivot below which nothing can be kept; -inf where no pivot tells."""
    excluded = largest * 0.0 + float("-inf")
    target = _target_mass(tl.load(masses_ptr + row * (PIVOTS + 1) + PIVOTS), top_p)
    for i in tl.static_range(PIVOTS):
        pivot = largest - _pivot_depth(i)
        by_count = (top_k > 0) & (tl.load(counts_ptr + row * (PIVOTS + 1) + i) >= top_k)
        # top-p is of what top-k leaves, which only the search knows, so with top-k its mass here says nothing.
        by_mass = (top_k <= 0) & (tl.load(masses_ptr + row * (PIVOTS + 1) + i) >= target)
        excluded = tl.where((by_count | by_mass) & (pivot > excluded), pivot, excluded)
    return excluded


@triton.jit
def _pack_kernel(
    logits_ptr,
    inverse_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    maxima_ptr,
    masses_ptr,
    counts_ptr,
    candidates_ptr,
    stride,
    vocab_size,
    num_chunks,
    CHUNK: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    top_k, top_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row)
    if (top_k > 0) | (top_p < 1.0):
        largest = _row_max(maxima_ptr, row, num_chunks, BLOCK_CHUNKS)
        excluded = _excluded(row, largest, top_k, top_p, masses_ptr, counts_ptr, PIVOTS)
        token_ids = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
        x = tl.load(logits_ptr + row * stride + token_ids, mask=token_ids < vocab_size, other=float("-inf"))
        x = x * tl.load(inverse_ptr + row)
        packed = (x > excluded) & (x >= largest + tl.log(tl.load(min_p_ptr + row)))
        places = tl.cumsum(packed.to(tl.int32), axis=0)
        count = tl.max(places, axis=0)
        if count > 0:
            begin = tl.atomic_add(counts_ptr + row * (PIVOTS + 1) + PIVOTS, count, sem="relaxed")
            tl.store(candidates_ptr + row * vocab_size + begin + places - 1, x, mask=packed)


@triton.jit
def _search_floor(
    values_ptr, count, least, floor, largest, target, BY_MASS: tl.constexpr, BLOCK: tl.constexpr
):
    """Give the smallest of the values with less than `target` (count or mass) strictly above it.

    All up to `low` is excluded and `high` is a value that is kept; each step moves one of them to or past the middle.
    """
    columns = tl.arange(0, BLOCK)
    low, high = least, largest
    # The first step asks whether the least value itself is kept.
    pivot = least
    active = count > 0
    while active:
        above = target * 0
        up = largest
        down = largest * 0.0 + float("-inf")
        for start in range(0, count, BLOCK):
            x = tl.load(values_ptr + start + columns, mask=start + columns < count, other=float("-inf"))
            x = tl.where(x >= floor, x, float("-inf"))
            is_above = x > pivot
            weight = _mass(x, largest) if BY_MASS else (x > float("-inf")).to(tl.int64)
            above += tl.sum(tl.where(is_above, weight, 0), axis=0)
            up = tl.minimum(up, tl.min(tl.where(is_above, x, float("inf")), axis=0))
            down = tl.maximum(down, tl.max(tl.where(is_above, float("-inf"), x), axis=0))
        if above < target:
            # The largest value not above the pivot has the same mass strictly above it as the pivot has: it is kept.
            high = tl.where(pivot <= least, least, tl.where(down > low, down, up))
            active = (down > low) & (pivot > least)
        else:
            low = pivot
            active = up < high
        middle = low + (high - low) * 0.5
        pivot = tl.where((middle > low) & (middle < high), middle, low)
        active = active & (pivot > low)
    return high


@triton.jit
def _floor_kernel(
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    maxima_ptr,
    masses_ptr,
    counts_ptr,
    candidates_ptr,
    floor_ptr,
    vocab_size,
    num_chunks,
    SEARCHED: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    PIVOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    largest = _row_max(maxima_ptr, row, num_chunks, BLOCK_CHUNKS)
    floor = largest + tl.log(tl.load(min_p_ptr + row))
    if SEARCHED:
        top_k, top_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row)
        if (top_k > 0) | (top_p < 1.0):
            count = tl.load(counts_ptr + row * (PIVOTS + 1) + PIVOTS)
            values_ptr = candidates_ptr + row * vocab_size
            columns = tl.arange(0, BLOCK)
            least = largest
            for start in range(0, count, BLOCK):
                x = tl.load(values_ptr + start + columns, mask=start + columns < count, other=float("inf"))
                least = tl.minimum(least, tl.min(x, axis=0))
            if top_k > 0:
                floor = _search_floor(
                    values_ptr, count, least, least, largest, top_k.to(tl.int64), False, BLOCK
                )
            if top_p < 1.0:
                total = tl.load(masses_ptr + row * (PIVOTS + 1) + PIVOTS)
                if top_k > 0:
                    least = floor
                    total = total * 0
                    for start in range(0, count, BLOCK):
                        x = tl.load(
                            values_ptr + start + columns, mask=start + columns < count, other=float("-inf")
                        )
                        total += tl.sum(_mass(tl.where(x >= floor, x, float("-inf")), largest), axis=0)
                target = tl.maximum(_target_mass(total, top_p), 1)
                floor = _search_floor(values_ptr, count, least, least, largest, target, True, BLOCK)
    tl.store(floor_ptr + row, floor)
