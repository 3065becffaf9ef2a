"""Find, without a sort, each row's smallest logit that min-p, top-k and top-p keep.

A row is cut into chunks, one program each, so that one row fills the device as well as many do. Four launches: the chunks' maxima;
their counts and masses above eight pivots below the row's maximum; the values between the pivots that bracket the floor, packed together in
order; a bisection among those by one program a row. Every sum has a fixed order, so a row's floor is a function of the row.
What is kept among equal values: sample.py. Bound by memory: three passes over the logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from baton.kernels.launch import tl, triton

if TYPE_CHECKING:
    from baton.kernels.sample import SamplingBatch

_CHUNK = 4096
_SEARCH = 4096
_PIVOTS = 8


def find_floor(logits: Tensor, inverse: Tensor, batch: SamplingBatch) -> Tensor:
    """Give each row's smallest kept scaled logit, [N]; inverse: of the temperatures, 1 on greedy rows."""
    num_rows, vocab_size = logits.shape
    num_chunks = triton.cdiv(vocab_size, _CHUNK)
    grid = (num_rows, num_chunks)
    block_chunks = triton.next_power_of_2(num_chunks)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    maxima, floor = empty(num_rows, num_chunks), empty(num_rows)
    _max_kernel[grid](logits, inverse, maxima, logits.stride(0), vocab_size, CHUNK=_CHUNK, num_warps=8)
    row = (batch.top_k, batch.top_p, batch.min_p, maxima)
    searched = batch.any_top_k or batch.any_top_p
    if searched:
        # The last column of masses is the chunk's whole mass.
        masses = empty(num_rows, num_chunks, _PIVOTS + 1)
        counts = empty(num_rows, num_chunks, _PIVOTS, dtype=torch.int32)
        bracket = empty(num_rows, 4)
        values = empty(num_rows, vocab_size)
        shape = (logits.stride(0), vocab_size, num_chunks)
        _measure_kernel[grid](
            *row,
            masses,
            counts,
            logits,
            inverse,
            *shape,
            CHUNK=_CHUNK,
            BLOCK_CHUNKS=block_chunks,
            PIVOTS=_PIVOTS,
            num_warps=8,
        )
        _pack_kernel[grid](
            *row,
            masses,
            counts,
            bracket,
            values,
            logits,
            inverse,
            *shape,
            CHUNK=_CHUNK,
            BLOCK_CHUNKS=block_chunks,
            PIVOTS=_PIVOTS,
            num_warps=8,
        )
    else:
        bracket = values = maxima
    _floor_kernel[(num_rows,)](
        *row,
        bracket,
        values,
        floor,
        vocab_size,
        num_chunks,
        SEARCHED=searched,
        BLOCK_CHUNKS=block_chunks,
        BLOCK=_SEARCH,
        num_warps=16,
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
    """Give how far below the row's maximum pivot i lies, in nats: 0.75, 1.75, 3, 4.5, 6.25, 8.25, 10.5, 13."""
    return 0.75 + i * (0.875 + 0.125 * i)


@triton.jit
def _chunk_values(logits_ptr, inverse_ptr, row, chunk, stride, vocab_size, least, CHUNK: tl.constexpr):
    """Load a chunk's scaled logits, -inf below `least`."""
    token_ids = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits_ptr + row * stride + token_ids, mask=token_ids < vocab_size, other=float("-inf"))
    x = x * tl.load(inverse_ptr + row)
    return tl.where(x >= least, x, float("-inf"))


@triton.jit
def _measure_kernel(
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    maxima_ptr,
    masses_ptr,
    counts_ptr,
    logits_ptr,
    inverse_ptr,
    stride,
    vocab_size,
    num_chunks,
    CHUNK: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if (tl.load(top_k_ptr + row) > 0) | (tl.load(top_p_ptr + row) < 1.0):
        largest = _row_max(maxima_ptr, row, num_chunks, BLOCK_CHUNKS)
        least = largest + tl.log(tl.load(min_p_ptr + row))
        x = _chunk_values(logits_ptr, inverse_ptr, row, chunk, stride, vocab_size, least, CHUNK)
        mass = tl.exp(x - largest)
        masses = masses_ptr + (row * num_chunks + chunk) * (PIVOTS + 1)
        counts = counts_ptr + (row * num_chunks + chunk) * PIVOTS
        for i in tl.static_range(PIVOTS):
            above = x > largest - _pivot_depth(i)
            tl.store(counts + i, tl.sum(above.to(tl.int32), axis=0))
            tl.store(masses + i, tl.sum(tl.where(above, mass, 0.0), axis=0))
        tl.store(masses + PIVOTS, tl.sum(mass, axis=0))


@triton.jit
def _pack_kernel(
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    maxima_ptr,
    masses_ptr,
    counts_ptr,
    bracket_ptr,
    values_ptr,
    logits_ptr,
    inverse_ptr,
    stride,
    vocab_size,
    num_chunks,
    CHUNK: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """Pack a row's values in (low, high], which hold its floor, and write (their count, mass above high, target mass, low).

    With top-k, `high` is infinite: top-p then needs every survivor.
    """
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    top_k, top_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row)
    if (top_k > 0) | (top_p < 1.0):
        largest = _row_max(maxima_ptr, row, num_chunks, BLOCK_CHUNKS)
        chunks = tl.arange(0, BLOCK_CHUNKS)
        inside = chunks < num_chunks
        masses = masses_ptr + (row * num_chunks + chunks) * (PIVOTS + 1)
        counts = counts_ptr + (row * num_chunks + chunks) * PIVOTS
        target = top_p * tl.sum(tl.load(masses + PIVOTS, mask=inside, other=0.0), axis=0)
        low, high = largest * 0.0 + float("-inf"), largest * 0.0 + float("inf")
        mass_above_high = largest * 0.0
        low_counts = tl.full([BLOCK_CHUNKS], CHUNK, tl.int32)
        high_counts = tl.zeros([BLOCK_CHUNKS], tl.int32)
        # From the deepest pivot up: the last that is excluded is the highest, the first that is not is the lowest.
        for j in tl.static_range(PIVOTS):
            i = PIVOTS - 1 - j
            pivot = largest - _pivot_depth(i)
            pivot_counts = tl.load(counts + i, mask=inside, other=0)
            mass = tl.sum(tl.load(masses + i, mask=inside, other=0.0), axis=0)
            by_count = (top_k > 0) & (tl.sum(pivot_counts, axis=0) >= top_k)
            by_mass = (top_k <= 0) & (mass >= target)
            excluded = by_count | by_mass
            low = tl.where(excluded, pivot, low)
            low_counts = tl.where(excluded, pivot_counts, low_counts)
            is_high = (top_k <= 0) & (mass < target) & (high == float("inf"))
            high = tl.where(is_high, pivot, high)
            high_counts = tl.where(is_high, pivot_counts, high_counts)
            mass_above_high = tl.where(is_high, mass, mass_above_high)
        least = largest + tl.log(tl.load(min_p_ptr + row))
        x = _chunk_values(logits_ptr, inverse_ptr, row, chunk, stride, vocab_size, least, CHUNK)
        packed = (x > low) & (x <= high)
        places = tl.cumsum(packed.to(tl.int32), axis=0)
        count = tl.max(places, axis=0)
        # Where no pivot is excluded nothing says how many each chunk keeps: every chunk then has its own full place.
        sizes = tl.where(low > float("-inf"), low_counts - high_counts, CHUNK)
        begin = tl.sum(tl.where(chunks < chunk, sizes, 0), axis=0)
        to = values_ptr + row * vocab_size + begin
        tl.store(to + places - 1, x, mask=packed)
        if low == float("-inf"):
            rest = count + tl.arange(0, CHUNK)
            tl.store(
                to + rest,
                tl.full([CHUNK], float("-inf"), tl.float32),
                mask=(rest < CHUNK) & (begin + rest < vocab_size),
            )
        if chunk == 0:
            total = tl.minimum(tl.sum(tl.where(inside, sizes, 0), axis=0), vocab_size)
            tl.store(bracket_ptr + row * 4, total.to(tl.float32))  # at most 2^24
            tl.store(bracket_ptr + row * 4 + 1, mass_above_high)
            tl.store(bracket_ptr + row * 4 + 2, target)


@triton.jit
def _search_floor(
    values_ptr, count, floor, largest, base, target, BY_MASS: tl.constexpr, BLOCK: tl.constexpr
):
    """Give the smallest of the values at or above `floor` with less than `target` (count or mass) strictly above it.

    base: the count or mass above all of the values. All up to `low` is excluded and `high` is a value that is kept (the largest of
    them always is); each step moves one of them to or past the middle.
    """
    columns = tl.arange(0, BLOCK)
    least_of = tl.full([BLOCK], float("inf"), tl.float32)
    most_of = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, count, BLOCK):
        x = tl.load(values_ptr + start + columns, mask=start + columns < count, other=float("-inf"))
        x = tl.where(x >= floor, x, float("-inf"))
        least_of = tl.minimum(least_of, tl.where(x > float("-inf"), x, float("inf")))
        most_of = tl.maximum(most_of, x)
    least, high = tl.min(least_of, axis=0), tl.max(most_of, axis=0)
    low = least
    # The first step asks whether the least value itself is kept.
    pivot = least
    active = least <= high
    while active:
        above_of = tl.zeros([BLOCK], tl.float32)
        up_of = tl.full([BLOCK], float("inf"), tl.float32)
        down_of = tl.full([BLOCK], float("-inf"), tl.float32)
        for start in range(0, count, BLOCK):
            x = tl.load(values_ptr + start + columns, mask=start + columns < count, other=float("-inf"))
            x = tl.where(x >= floor, x, float("-inf"))
            is_above = x > pivot
            if BY_MASS:
                above_of += tl.where(is_above, tl.exp(x - largest), 0.0)
            else:
                above_of += is_above.to(tl.float32)
            up_of = tl.minimum(up_of, tl.where(is_above, x, float("inf")))
            down_of = tl.maximum(down_of, tl.where(is_above, float("-inf"), x))
        above = base + tl.sum(above_of, axis=0)
        if above < target:
            # The largest value not above the pivot has the same mass strictly above it as the pivot has: it is kept.
            down = tl.max(down_of, axis=0)
            high = tl.where(pivot <= least, least, tl.where(down > low, down, tl.min(up_of, axis=0)))
            active = (down > low) & (pivot > least)
        else:
            low = pivot
            active = tl.min(up_of, axis=0) < high
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
    bracket_ptr,
    values_ptr,
    floor_ptr,
    vocab_size,
    num_chunks,
    SEARCHED: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    largest = _row_max(maxima_ptr, row, num_chunks, BLOCK_CHUNKS)
    floor = largest + tl.log(tl.load(min_p_ptr + row))
    if SEARCHED:
        top_k, top_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row)
        if (top_k > 0) | (top_p < 1.0):
            count = tl.load(bracket_ptr + row * 4).to(tl.int32)
            base, target = tl.load(bracket_ptr + row * 4 + 1), tl.load(bracket_ptr + row * 4 + 2)
            values = values_ptr + row * vocab_size
            if top_k > 0:
                found = _search_floor(values, count, floor, largest, 0.0, top_k.to(tl.float32), False, BLOCK)
                floor = tl.maximum(floor, found)
                if top_p < 1.0:
                    columns = tl.arange(0, BLOCK)
                    total_of = tl.zeros([BLOCK], tl.float32)
                    for start in range(0, count, BLOCK):
                        x = tl.load(
                            values + start + columns, mask=start + columns < count, other=float("-inf")
                        )
                        total_of += tl.where(x >= floor, tl.exp(x - largest), 0.0)
                    target = top_p * tl.sum(total_of, axis=0)
            if top_p < 1.0:
                found = _search_floor(values, count, floor, largest, base, target, True, BLOCK)
                floor = tl.maximum(floor, found)
    tl.store(floor_ptr + row, floor)
