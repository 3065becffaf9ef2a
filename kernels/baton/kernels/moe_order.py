"""Put a step's pairs of token and expert in the order of their experts, and cut each expert's into tiles of rows.

chosen [tokens, k]; pair t * k + j is token t with its j-th expert. Sorted by counting, stable: the pairs of an expert stand in
the order of the tokens. Everything has a size that the number of tokens fixes, so nothing waits for the host and the step can
be captured: there are as many tiles as there can be, and those beyond the last one name no expert. Bound by the launches.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from baton.kernels.launch import on_triton, overlap, start_next, tl, triton, wait_for_previous


class Tiles(NamedTuple):
    """Which rows of the sorted pairs are multiplied by which expert."""

    order: Tensor  # [pairs] int32: the pair at each place
    expert: Tensor  # [tiles] int32; -1 where there is no tile
    first: Tensor  # [tiles] int32: the place of the first row
    end: Tensor  # [tiles] int32: the end of the expert's places


def num_tiles(num_pairs: int, num_experts: int, block_m: int) -> int:
    """Count the most tiles that so many pairs can fill: one that is not full for each expert that has any."""
    touched = min(num_experts, num_pairs)
    return (num_pairs - touched) // block_m + touched


def order_by_expert_reference(chosen: Tensor, num_experts: int, block_m: int) -> Tiles:
    """Sort and cut in plain torch."""
    pairs = chosen.flatten()
    order = pairs.argsort(stable=True).int()
    counts = torch.bincount(pairs, minlength=num_experts)
    ends = counts.cumsum(0)
    tiles = (counts + block_m - 1) // block_m
    tile_ends = tiles.cumsum(0)
    at = torch.arange(num_tiles(len(pairs), num_experts, block_m), device=chosen.device)
    expert = torch.searchsorted(tile_ends, at, right=True)
    known = expert.clamp(max=num_experts - 1)
    first = (ends - counts)[known] + (at - (tile_ends - tiles)[known]) * block_m
    expert = expert.masked_fill(expert == num_experts, -1)
    return Tiles(order, expert.int(), first.int(), ends[known].int())


def order_by_expert(chosen: Tensor, num_experts: int, block_m: int) -> Tiles:
    """Sort the pairs by expert and cut them into tiles of up to `block_m` rows of one expert."""
    if not on_triton(chosen, "moe"):
        return order_by_expert_reference(chosen, num_experts, block_m)
    return _launch(chosen, num_experts, block_m)


# --- Triton -----------------------------------------------------------------------------------------

_PART = 64
"""Pairs that are looked at together, beside all experts."""
_MOST_CHUNKS = 64


def _launch(chosen: Tensor, num_experts: int, block_m: int) -> Tiles:
    num_tokens, num_pairs, device = len(chosen), chosen.numel(), chosen.device
    most = num_tiles(num_pairs, num_experts, block_m)
    order, expert, first, end = (
        torch.empty(n, dtype=torch.int32, device=device) for n in (num_pairs, most, most, most)
    )
    chunk_len = _PART * triton.cdiv(num_pairs, _PART * _MOST_CHUNKS)
    num_chunks = triton.cdiv(num_pairs, chunk_len)
    block_e = triton.next_power_of_2(num_experts)
    # How many pairs of each expert a chunk has, and then at which place its first one goes.
    counts = torch.empty((num_chunks, block_e), dtype=torch.int32, device=device)
    options = overlap(num_tokens, device)
    _count_kernel[(num_chunks,)](chosen, counts, num_pairs, chunk_len, PART=_PART, BLOCK_E=block_e, **options)
    _place_tiles_kernel[(1,)](
        counts,
        expert,
        first,
        end,
        num_chunks,
        most,
        NUM_EXPERTS=num_experts,
        BLOCK_E=block_e,
        BLOCK_C=_MOST_CHUNKS,
        BLOCK_M=block_m,
        PART=_PART,
        num_warps=8,
        **options,
    )
    _sort_kernel[(num_chunks,)](chosen, counts, order, num_pairs, chunk_len, PART=_PART, BLOCK_E=block_e, **options)
    return Tiles(order, expert, first, end)


@triton.jit(do_not_specialize=["num_pairs", "chunk_len"])
def _count_kernel(
    chosen_ptr, counts_ptr, num_pairs, chunk_len, PART: tl.constexpr, BLOCK_E: tl.constexpr, OVERLAP: tl.constexpr
):
    start_next(OVERLAP)
    wait_for_previous(OVERLAP)
    chunk = tl.program_id(0)
    experts = tl.arange(0, BLOCK_E)
    counts = tl.zeros([BLOCK_E], tl.int32)
    for start in range(0, chunk_len, PART):
        at = chunk * chunk_len + start + tl.arange(0, PART)
        of = tl.load(chosen_ptr + at, mask=at < num_pairs, other=-1)
        counts += tl.sum((of[:, None] == experts[None, :]).to(tl.int32), axis=0)
    tl.store(counts_ptr + chunk * BLOCK_E + experts, counts)


@triton.jit(do_not_specialize=["num_chunks", "most"])
def _place_tiles_kernel(
    counts_ptr,
    expert_ptr,
    first_ptr,
    end_ptr,
    num_chunks,
    most,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PART: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next(OVERLAP)
    wait_for_previous(OVERLAP)
    experts = tl.arange(0, BLOCK_E)
    chunks = tl.arange(0, BLOCK_C)
    at = counts_ptr + chunks[:, None] * BLOCK_E + experts[None, :]
    inside = (chunks < num_chunks)[:, None]
    counts = tl.load(at, mask=inside, other=0)  # [chunks, experts]
    totals = tl.sum(counts, axis=0)
    ends = tl.cumsum(totals, axis=0)
    firsts = ends - totals
    tl.store(at, firsts[None, :] + tl.cumsum(counts, axis=0) - counts, mask=inside)
    tiles = (totals + BLOCK_M - 1) // BLOCK_M
    tile_ends = tl.cumsum(tiles, axis=0)
    for start in range(0, most, PART):
        tile = start + tl.arange(0, PART)
        expert = tl.sum((tile_ends[None, :] <= tile[:, None]).to(tl.int32), axis=1)
        own = (experts[None, :] == expert[:, None]).to(tl.int32)  # none where there is no such tile
        first = tl.sum(own * firsts[None, :], axis=1) + BLOCK_M * (
            tile - tl.sum(own * (tile_ends - tiles)[None, :], axis=1)
        )
        kept = tile < most
        tl.store(expert_ptr + tile, tl.where(expert < NUM_EXPERTS, expert, -1), mask=kept)
        tl.store(first_ptr + tile, first, mask=kept)
        tl.store(end_ptr + tile, tl.sum(own * ends[None, :], axis=1), mask=kept)


@triton.jit(do_not_specialize=["num_pairs", "chunk_len"])
def _sort_kernel(
    chosen_ptr,
    places_ptr,
    order_ptr,
    num_pairs,
    chunk_len,
    PART: tl.constexpr,
    BLOCK_E: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next(OVERLAP)
    wait_for_previous(OVERLAP)
    chunk = tl.program_id(0)
    experts = tl.arange(0, BLOCK_E)
    places = tl.load(places_ptr + chunk * BLOCK_E + experts)  # of the next pair of each expert
    for start in range(0, chunk_len, PART):
        at = chunk * chunk_len + start + tl.arange(0, PART)
        of = tl.load(chosen_ptr + at, mask=at < num_pairs, other=-1)
        own = (of[:, None] == experts[None, :]).to(tl.int32)
        place = tl.sum(own * (places[None, :] + tl.cumsum(own, axis=0) - 1), axis=1)
        tl.store(order_ptr + place, at, mask=at < num_pairs)
        places += tl.sum(own, axis=0)
