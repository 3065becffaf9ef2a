"""Sample on the device: adjusted logits, one noisy maximum a chunk, one a row; and log probabilities. No
sort, no synchronization.

The formulas are in sample.py. A row is cut into chunks of 4096 logits, one program each, so that one row
fills the device as well as many do.
"""

import torch
from torch import Tensor

from baton.kernels.launch import tl, triton
from baton.kernels.sample_floor import CHUNK, find_floor
from baton.kernels.sampling_batch import SamplingBatch


def draw(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """Draw each row's token id, [N] int64; changes the logits of rows with bias or penalties."""
    _adjust(logits, batch)
    num_rows, vocab_size = logits.shape
    device = logits.device
    chosen = torch.empty(num_rows, dtype=torch.int64, device=device)
    if num_rows == 0:
        return chosen
    num_chunks = triton.cdiv(vocab_size, CHUNK)
    grid = (num_rows, num_chunks)
    inverse = floor = None
    if not batch.all_greedy:
        inverse = batch.inverse_temperature
        if batch.any_top_k or batch.any_top_p or batch.any_min_p:
            floor = find_floor(logits, inverse, batch)
    best = torch.empty((num_rows, num_chunks), dtype=torch.float32, device=device)
    best_ids = torch.empty((num_rows, num_chunks), dtype=torch.int32, device=device)
    _draw_kernel[grid](
        logits,
        logits if inverse is None else inverse,
        logits if inverse is None else batch.temperature,
        logits if floor is None else floor,
        logits if inverse is None else batch.keys,
        best,
        best_ids,
        logits.stride(0),
        vocab_size,
        IS_GREEDY=batch.all_greedy,
        HAS_FLOOR=floor is not None,
        CHUNK=CHUNK,
        num_warps=8,
    )
    _pick_kernel[(num_rows,)](best, best_ids, chosen, num_chunks, BLOCK=triton.next_power_of_2(num_chunks), num_warps=1)
    return chosen


def _adjust(logits: Tensor, batch: SamplingBatch) -> None:
    """Apply allowed tokens, bias and penalties in place, so that rows without any are not touched."""
    num_rows, vocab_size = logits.shape
    if batch.allowed is not None:
        logits.masked_fill_(batch.allowed.logical_not(), float("-inf"))
    if batch.bias_rows is not None:
        num_entries = batch.bias_rows.shape[0]
        _bias_kernel[(triton.cdiv(num_entries, 128),)](
            logits,
            batch.bias_rows,
            batch.bias_token_ids,
            batch.bias_values,
            num_entries,
            logits.stride(0),
            BLOCK=128,
            num_warps=4,
        )
    if batch.has_penalties:
        _penalize_kernel[(num_rows, triton.cdiv(vocab_size, CHUNK))](
            logits,
            batch.counts,
            batch.count_rows,
            batch.repetition_penalty,
            batch.presence_penalty,
            batch.frequency_penalty,
            logits.stride(0),
            vocab_size,
            CHUNK=CHUNK,
            num_warps=8,
        )


def row_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute what `sample.logprobs` says."""
    num_rows, vocab_size = logits.shape
    num_chunks = triton.cdiv(vocab_size, CHUNK)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    chosen, rank = empty(num_rows), empty(num_rows, dtype=torch.int64)
    top_ids, top = empty(num_rows, num_top, dtype=torch.int64), empty(num_rows, num_top)
    if num_rows == 0:
        return chosen, rank, top_ids, top
    kept = min(num_top, CHUNK)
    statistics = empty(num_rows, num_chunks, 3)
    chunk_top = empty(num_rows, num_chunks * kept)
    chunk_ids = empty(num_rows, num_chunks * kept, dtype=torch.int32)
    _measure_chunk_kernel[(num_rows, num_chunks)](
        logits,
        token_ids,
        statistics,
        chunk_top,
        chunk_ids,
        logits.stride(0),
        vocab_size,
        kept,
        CHUNK=CHUNK,
        num_warps=8,
    )
    _merge_chunks_kernel[(num_rows,)](
        logits,
        token_ids,
        statistics,
        chunk_top,
        chunk_ids,
        chosen,
        rank,
        top_ids,
        top,
        logits.stride(0),
        num_chunks,
        num_top,
        num_chunks * kept,
        BLOCK_CHUNKS=triton.next_power_of_2(num_chunks),
        BLOCK_TOP=triton.next_power_of_2(max(1, num_chunks * kept)),
        num_warps=8,
    )
    return chosen, rank, top_ids, top


# --- Triton -----------------------------------------------------------------------------------------


@triton.jit
def _gumbel(token_ids, key_0, key_1):
    """Do what gumbel_reference does, bit for bit up to the logarithms."""
    x = token_ids.to(tl.uint32)
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16
    x ^= key_0.to(tl.uint32)
    x ^= x >> 16
    x *= 0x7FEB352D
    x += key_1.to(tl.uint32)
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16
    uniform = ((x & 0x7FFFFFFF).to(tl.int32).to(tl.float32) + 0.5) * 4.656612873077393e-10
    uniform = tl.minimum(uniform, 0.9999999403953552)
    # -log(1 - w); below 2^-8 by its series, as 1 - w would round w away.
    series = uniform * (1.0 + uniform * (0.5 + uniform * 0.3333333333333333))
    exponential = tl.where(uniform < 0.00390625, series, -tl.log(1.0 - uniform))
    return -tl.log(exponential)


@triton.jit
def _draw_kernel(
    logits_ptr,
    inverse_ptr,
    temperature_ptr,
    floor_ptr,
    keys_ptr,
    best_ptr,
    best_ids_ptr,
    stride,
    vocab_size,
    IS_GREEDY: tl.constexpr,
    HAS_FLOOR: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token_ids = chunk * CHUNK + tl.arange(0, CHUNK)
    scores = tl.load(logits_ptr + row * stride + token_ids, mask=token_ids < vocab_size, other=float("-inf"))
    if not IS_GREEDY:
        scores = scores * tl.load(inverse_ptr + row)
        if HAS_FLOOR:
            scores = tl.where(scores >= tl.load(floor_ptr + row), scores, float("-inf"))
        if tl.load(temperature_ptr + row) != 0.0:
            scores += _gumbel(token_ids, tl.load(keys_ptr + 2 * row), tl.load(keys_ptr + 2 * row + 1))
    best, at = tl.max(scores, axis=0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(best_ptr + row * tl.num_programs(1) + chunk, best)
    tl.store(best_ids_ptr + row * tl.num_programs(1) + chunk, chunk * CHUNK + at)


@triton.jit
def _pick_kernel(best_ptr, best_ids_ptr, chosen_ptr, num_chunks, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    chunks = tl.arange(0, BLOCK)
    best = tl.load(best_ptr + row * num_chunks + chunks, mask=chunks < num_chunks, other=float("-inf"))
    _, chunk = tl.max(best, axis=0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(chosen_ptr + row, tl.load(best_ids_ptr + row * num_chunks + chunk).to(tl.int64))


@triton.jit(do_not_specialize=["num_entries"])
def _bias_kernel(logits_ptr, rows_ptr, ids_ptr, values_ptr, num_entries, stride, BLOCK: tl.constexpr):
    entries = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = entries < num_entries
    rows = tl.load(rows_ptr + entries, mask=inside, other=0)
    ids = tl.load(ids_ptr + entries, mask=inside, other=0)
    values = tl.load(values_ptr + entries, mask=inside, other=0.0)
    tl.atomic_add(logits_ptr + rows * stride + ids, values, mask=inside, sem="relaxed")


@triton.jit(do_not_specialize_on_alignment=["count_rows_ptr"])
def _penalize_kernel(
    logits_ptr,
    counts_ptr,
    count_rows_ptr,
    repetition_ptr,
    presence_ptr,
    frequency_ptr,
    stride,
    vocab_size,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    repetition = tl.load(repetition_ptr + row)
    presence, frequency = tl.load(presence_ptr + row), tl.load(frequency_ptr + row)
    if (repetition != 1.0) | (presence != 0.0) | (frequency != 0.0):
        token_ids = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
        inside = token_ids < vocab_size
        at = logits_ptr + row * stride + token_ids
        x = tl.load(at, mask=inside, other=0.0)
        count_row = tl.load(count_rows_ptr + row)
        counts = tl.load(counts_ptr + count_row * vocab_size + token_ids, mask=inside, other=0)
        num_drawn = (counts & 0x3FFFFFFF).to(tl.float32)
        x = tl.where(counts != 0, tl.where(x > 0, x / repetition, x * repetition), x)
        x -= frequency * num_drawn
        x -= tl.where(num_drawn > 0, presence, 0.0)
        tl.store(at, x, mask=inside)


@triton.jit(do_not_specialize=["num_top"])
def _measure_chunk_kernel(
    logits_ptr, ids_ptr, statistics_ptr, top_ptr, top_ids_ptr, stride, vocab_size, num_top, CHUNK: tl.constexpr
):
    """Write a chunk's (maximum, sum of exp above it, number at least as likely as the chosen token) and its best tokens."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = row * tl.num_programs(1) + chunk
    token_ids = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = token_ids < vocab_size
    x = tl.load(logits_ptr + row * stride + token_ids, mask=inside, other=float("-inf"))
    chosen = tl.load(logits_ptr + row * stride + tl.load(ids_ptr + row))
    largest = tl.maximum(tl.max(x, axis=0), -1.0e38)
    tl.store(statistics_ptr + 3 * at, largest)
    tl.store(statistics_ptr + 3 * at + 1, tl.sum(tl.exp(x - largest), axis=0))
    tl.store(statistics_ptr + 3 * at + 2, tl.sum((inside & (x >= chosen)).to(tl.float32), axis=0))  # at most 2^24
    for i in range(num_top):
        best, place = tl.max(x, axis=0, return_indices=True, return_indices_tie_break_left=True)
        tl.store(top_ptr + at * num_top + i, best)
        tl.store(top_ids_ptr + at * num_top + i, chunk * CHUNK + place)
        x = tl.where(token_ids == chunk * CHUNK + place, float("-inf"), x)


@triton.jit(do_not_specialize=["num_top", "num_candidates"])
def _merge_chunks_kernel(
    logits_ptr,
    ids_ptr,
    statistics_ptr,
    chunk_top_ptr,
    chunk_ids_ptr,
    chosen_ptr,
    rank_ptr,
    top_ids_ptr,
    top_ptr,
    stride,
    num_chunks,
    num_top,
    num_candidates,
    BLOCK_CHUNKS: tl.constexpr,
    BLOCK_TOP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    chunks = tl.arange(0, BLOCK_CHUNKS)
    inside = chunks < num_chunks
    at = statistics_ptr + 3 * (row * num_chunks + chunks)
    maxima = tl.load(at, mask=inside, other=-1.0e38)
    largest = tl.max(maxima, axis=0)
    sums = tl.load(at + 1, mask=inside, other=0.0) * tl.exp(maxima - largest)
    normalizer = largest + tl.log(tl.sum(sums, axis=0))
    tl.store(rank_ptr + row, tl.sum(tl.load(at + 2, mask=inside, other=0.0), axis=0).to(tl.int64))
    tl.store(chosen_ptr + row, tl.load(logits_ptr + row * stride + tl.load(ids_ptr + row)) - normalizer)
    candidates = tl.arange(0, BLOCK_TOP)
    inside_top = candidates < num_candidates
    x = tl.load(chunk_top_ptr + row * num_candidates + candidates, mask=inside_top, other=float("-inf"))
    for i in range(num_top):
        best, place = tl.max(x, axis=0, return_indices=True, return_indices_tie_break_left=True)
        tl.store(top_ptr + row * num_top + i, best - normalizer)
        tl.store(top_ids_ptr + row * num_top + i, tl.load(chunk_ids_ptr + row * num_candidates + place).to(tl.int64))
        x = tl.where(candidates == place, float("-inf"), x)
