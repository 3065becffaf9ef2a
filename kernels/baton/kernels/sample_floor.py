"""Find, without a sort, each row's smallest logit that min-p, top-k and top-p keep.

A row is cut into chunks, one program each, so that one row fills the device as well as many do. Five
launches: the chunks' maxima; their counts and masses above four pivots below the row's maximum; above eight
pivots between the two of those that bracket the floor; the values in the bracket, packed together in order; a
bisection among these by one program a row. Without the second set of pivots a flat row leaves 14,000 of 128k
values in the bracket, and one program takes 190 us over them. Every sum has a fixed order, so a row's floor
is a function of the row. What is kept among equal values: sample.py. Bound by memory: four passes over the
logits.
"""

import torch
from torch import Tensor

from baton.kernels.launch import tl, triton
from baton.kernels.sampling_batch import SamplingBatch

CHUNK = 4096
_SEARCH = 2048
_COARSE, _FINE = 4, 8  # pivots


def find_floor(logits: Tensor, inverse: Tensor, batch: SamplingBatch) -> Tensor:
    """Find each row's smallest kept scaled logit, [N]; inverse: of the temperatures, 1 on greedy rows."""
    num_rows, vocab_size = logits.shape
    num_chunks = triton.cdiv(vocab_size, CHUNK)
    grid = (num_rows, num_chunks)
    block_chunks = triton.next_power_of_2(num_chunks)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    maxima, floor = empty(num_rows, num_chunks), empty(num_rows)
    _max_kernel[grid](logits, inverse, maxima, logits.stride(0), vocab_size, CHUNK=CHUNK, num_warps=8)
    row = (batch.top_k, batch.top_p, batch.min_p.log(), maxima)
    searched = batch.any_top_k or batch.any_top_p
    bracket = values = maxima
    if searched:
        # Each pivot's count and mass above it, a chunk at a time; beside the masses of the coarse pivots, the
        # chunk's whole mass.
        coarse_masses = empty(num_rows, num_chunks, _COARSE + 1)
        coarse_counts = empty(num_rows, num_chunks, _COARSE, dtype=torch.int32)
        masses = empty(num_rows, num_chunks, _FINE + 1)
        counts = empty(num_rows, num_chunks, _FINE, dtype=torch.int32)
        bracket, values = empty(num_rows, 4), empty(num_rows, vocab_size)
        # Fine pivots are kept, not computed again: packing relies on the counts above the very same values.
        pivots = empty(num_rows, _FINE)
        coarse, fine = (coarse_masses, coarse_counts), (masses, counts, pivots)
        shape = (logits, inverse, logits.stride(0), vocab_size, num_chunks)
        sizes = {"CHUNK": CHUNK, "BLOCK_CHUNKS": block_chunks, "COARSE": _COARSE, "FINE": _FINE, "num_warps": 8}
        _measure_kernel[grid](*row, *coarse, *fine, *shape, IS_FINE=False, **sizes)
        _measure_kernel[grid](*row, *coarse, *fine, *shape, IS_FINE=True, **sizes)
        _pack_kernel[grid](*row, *coarse, *fine, bracket, values, *shape, **sizes)
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
        num_warps=8,
    )
    return floor


# --- Triton -----------------------------------------------------------------------------------------


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
def _coarse_pivot(largest, i):
    """Pivot i of four: 1, 3, 7 and 13 nats below the row's maximum."""
    return largest - (1.0 + i * (1.0 + i))


@triton.jit
def _fine_pivot(low, high, i, FINE: tl.constexpr):
    """Pivot i between the two coarse ones of a bracket, from its top down; below an open bracket, 16 nats down."""
    bottom = tl.where(low > float("-inf"), low, high - 16.0)
    return high - (high - bottom) * ((i + 1.0) / (FINE + 1.0))


@triton.jit
def _chunk_values(logits_ptr, inverse_ptr, row, chunk, stride, vocab_size, least, CHUNK: tl.constexpr):
    """Load a chunk's scaled logits, -inf below `least`."""
    token_ids = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits_ptr + row * stride + token_ids, mask=token_ids < vocab_size, other=float("-inf"))
    x = x * tl.load(inverse_ptr + row)
    return tl.where(x >= least, x, float("-inf"))


@triton.jit
def _coarse_bracket(
    masses_ptr, counts_ptr, row, largest, top_k, top_p, num_chunks, BLOCK_CHUNKS: tl.constexpr, COARSE: tl.constexpr
):
    """Find (low, high, target mass): all up to low is excluded, some above high may not be kept only if high is the maximum."""
    chunks = tl.arange(0, BLOCK_CHUNKS)
    inside = chunks < num_chunks
    masses = masses_ptr + (row * num_chunks + chunks) * (COARSE + 1)
    counts = counts_ptr + (row * num_chunks + chunks) * COARSE
    target = top_p * tl.sum(tl.load(masses + COARSE, mask=inside, other=0.0), axis=0)
    low, high = largest * 0.0 + float("-inf"), largest
    # From the top down: the first pivot that is excluded is the bracket's low end, the last that is not its
    # high end.
    for i in tl.static_range(COARSE):
        pivot = _coarse_pivot(largest, i)
        count = tl.sum(tl.load(counts + i, mask=inside, other=0), axis=0)
        mass = tl.sum(tl.load(masses + i, mask=inside, other=0.0), axis=0)
        excluded = tl.where(top_k > 0, count >= top_k, mass >= target)
        high = tl.where((low == float("-inf")) & ~excluded, pivot, high)
        low = tl.where((low == float("-inf")) & excluded, pivot, low)
    return low, high, target


@triton.jit
def _measure_kernel(
    top_k_ptr,
    top_p_ptr,
    log_min_p_ptr,
    maxima_ptr,
    coarse_masses_ptr,
    coarse_counts_ptr,
    masses_ptr,
    counts_ptr,
    pivots_ptr,
    logits_ptr,
    inverse_ptr,
    stride,
    vocab_size,
    num_chunks,
    CHUNK: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    COARSE: tl.constexpr,
    FINE: tl.constexpr,
    IS_FINE: tl.constexpr,
):
    """Write a chunk's counts and masses above the coarse pivots, or above the fine ones that the coarse ones lead to."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    top_k, top_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row)
    if (top_k > 0) | (top_p < 1.0):
        largest = _row_max(maxima_ptr, row, num_chunks, BLOCK_CHUNKS)
        least = largest + tl.load(log_min_p_ptr + row)
        x = _chunk_values(logits_ptr, inverse_ptr, row, chunk, stride, vocab_size, least, CHUNK)
        mass = tl.exp(x - largest)
        at = row * num_chunks + chunk
        if IS_FINE:
            low, high, _ = _coarse_bracket(
                coarse_masses_ptr, coarse_counts_ptr, row, largest, top_k, top_p, num_chunks, BLOCK_CHUNKS, COARSE
            )
            for i in tl.static_range(FINE):
                pivot = _fine_pivot(low, high, i, FINE)
                if chunk == 0:
                    tl.store(pivots_ptr + row * FINE + i, pivot)
                above = x > pivot
                tl.store(counts_ptr + at * FINE + i, tl.sum(above.to(tl.int32), axis=0))
                tl.store(masses_ptr + at * (FINE + 1) + i, tl.sum(tl.where(above, mass, 0.0), axis=0))
        else:
            for i in tl.static_range(COARSE):
                above = x > _coarse_pivot(largest, i)
                tl.store(coarse_counts_ptr + at * COARSE + i, tl.sum(above.to(tl.int32), axis=0))
                tl.store(coarse_masses_ptr + at * (COARSE + 1) + i, tl.sum(tl.where(above, mass, 0.0), axis=0))
            tl.store(coarse_masses_ptr + at * (COARSE + 1) + COARSE, tl.sum(mass, axis=0))


@triton.jit
def _pack_kernel(
    top_k_ptr,
    top_p_ptr,
    log_min_p_ptr,
    maxima_ptr,
    coarse_masses_ptr,
    coarse_counts_ptr,
    masses_ptr,
    counts_ptr,
    pivots_ptr,
    bracket_ptr,
    values_ptr,
    logits_ptr,
    inverse_ptr,
    stride,
    vocab_size,
    num_chunks,
    CHUNK: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    COARSE: tl.constexpr,
    FINE: tl.constexpr,
):
    """Pack a row's values in (low, high], which hold its floor, and write (their count, mass above high,
    target mass).

    With top-k, `high` is infinite: top-p then needs every survivor.
    """
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    top_k, top_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row)
    if (top_k > 0) | (top_p < 1.0):
        largest = _row_max(maxima_ptr, row, num_chunks, BLOCK_CHUNKS)
        coarse_low, _, target = _coarse_bracket(
            coarse_masses_ptr, coarse_counts_ptr, row, largest, top_k, top_p, num_chunks, BLOCK_CHUNKS, COARSE
        )
        chunks = tl.arange(0, BLOCK_CHUNKS)
        inside = chunks < num_chunks
        low, high = largest * 0.0 + float("-inf"), largest * 0.0 + float("inf")
        mass_above_high = largest * 0.0
        low_counts = tl.full([BLOCK_CHUNKS], CHUNK, tl.int32)
        high_counts = tl.zeros([BLOCK_CHUNKS], tl.int32)
        for i in tl.static_range(FINE):
            pivot = tl.load(pivots_ptr + row * FINE + i)
            pivot_counts = tl.load(counts_ptr + (row * num_chunks + chunks) * FINE + i, mask=inside, other=0)
            pivot_masses = tl.load(masses_ptr + (row * num_chunks + chunks) * (FINE + 1) + i, mask=inside, other=0.0)
            mass = tl.sum(pivot_masses, axis=0)
            excluded = tl.where(top_k > 0, tl.sum(pivot_counts, axis=0) >= top_k, mass >= target)
            is_low = (low == float("-inf")) & excluded
            is_high = (low == float("-inf")) & ~excluded & (top_k <= 0)
            low_counts = tl.where(is_low, pivot_counts, low_counts)
            low = tl.where(is_low, pivot, low)
            high = tl.where(is_high, pivot, high)
            high_counts = tl.where(is_high, pivot_counts, high_counts)
            mass_above_high = tl.where(is_high, mass, mass_above_high)
        if (low == float("-inf")) & (coarse_low > float("-inf")):
            # The floor is between the last fine pivot and the coarse one below it.
            low = coarse_low
            for i in tl.static_range(COARSE):
                is_it = coarse_low == _coarse_pivot(largest, i)
                at = (row * num_chunks + chunks) * COARSE + i
                low_counts = tl.where(is_it, tl.load(coarse_counts_ptr + at, mask=inside, other=0), low_counts)
        least = largest + tl.load(log_min_p_ptr + row)
        x = _chunk_values(logits_ptr, inverse_ptr, row, chunk, stride, vocab_size, least, CHUNK)
        packed = (x > low) & (x <= high)
        places = tl.cumsum(packed.to(tl.int32), axis=0)
        count = tl.max(places, axis=0)
        # Where nothing is surely excluded every chunk has its own full place, filled up with -inf.
        sizes = tl.where(low > float("-inf"), low_counts - high_counts, CHUNK)
        begin = tl.sum(tl.where(chunks < chunk, sizes, 0), axis=0)
        to = values_ptr + row * vocab_size + begin
        tl.store(to + places - 1, x, mask=packed)
        if low == float("-inf"):
            rest = count + tl.arange(0, CHUNK)
            fits = (rest < CHUNK) & (begin + rest < vocab_size)
            tl.store(to + rest, tl.full([CHUNK], float("-inf"), tl.float32), mask=fits)
        if chunk == 0:
            total = tl.minimum(tl.sum(tl.where(inside, sizes, 0), axis=0), vocab_size)
            tl.store(bracket_ptr + row * 4, total.to(tl.float32))  # at most 2^24
            tl.store(bracket_ptr + row * 4 + 1, mass_above_high)
            tl.store(bracket_ptr + row * 4 + 2, target)


@triton.jit
def _search_floor(values_ptr, count, floor, largest, base, target, BY_MASS: tl.constexpr, BLOCK: tl.constexpr):
    """Find the smallest of the values at or above `floor` with less than `target` (count or mass) strictly above it.

    base: the count or mass above all of the values. All up to `low` is excluded and `high` is a value that is
    kept (the largest of them always is); each step moves one of them to or past the middle.
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
            # The largest value not above the pivot has the same mass strictly above it as the pivot has: it
            # is kept.
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
    log_min_p_ptr,
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
    floor = largest + tl.load(log_min_p_ptr + row)
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
                        x = tl.load(values + start + columns, mask=start + columns < count, other=float("-inf"))
                        total_of += tl.where(x >= floor, tl.exp(x - largest), 0.0)
                    target = top_p * tl.sum(total_of, axis=0)
            if top_p < 1.0:
                found = _search_floor(values, count, floor, largest, base, target, True, BLOCK)
                floor = tl.maximum(floor, found)
    tl.store(floor_ptr + row, floor)
