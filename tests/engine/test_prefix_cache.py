"""Equal beginnings are found, and nothing else is."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from baton.block_hash import HASH_NBYTES, cache_root, hash_block, hash_blocks
from baton.engine.block_pool import BlockPool
from baton.engine.prefix_cache import PrefixCache

tokens = st.lists(st.integers(0, 2**32 - 1), max_size=40)


def hashes_of(token_ids: list[int], block_size: int, root: bytes = b"root") -> list[bytes]:
    hashes: list[bytes] = []
    hash_blocks(root, hashes, token_ids, block_size)
    return hashes


@settings(deadline=None, derandomize=True)
@given(token_ids=tokens, cut=st.integers(0, 40), block_size=st.integers(1, 5))
def test_hashing_in_two_goes_gives_the_same_chain(token_ids: list[int], cut: int, block_size: int) -> None:
    hashes = hashes_of(token_ids[:cut], block_size)
    hash_blocks(b"root", hashes, token_ids, block_size)
    assert hashes == hashes_of(token_ids, block_size)
    assert len(hashes) == len(token_ids) // block_size
    parent = None
    for at, block_hash in enumerate(hashes):
        parent = hash_block(b"root", parent, token_ids[at * block_size : (at + 1) * block_size])
        assert parent == block_hash
        assert len(block_hash) == HASH_NBYTES


@settings(deadline=None, derandomize=True)
@given(left=tokens, right=tokens)
def test_hashes_agree_exactly_as_far_as_the_tokens_do(left: list[int], right: list[int]) -> None:
    common = 0
    while common < min(len(left), len(right)) and left[common] == right[common]:
        common += 1
    agree = [a == b for a, b in zip(hashes_of(left, 2), hashes_of(right, 2), strict=False)]
    assert agree == [at < common // 2 for at in range(len(agree))]


def test_tokens_that_concatenate_alike_hash_apart() -> None:
    assert hash_block(b"root", None, [1, 23]) != hash_block(b"root", None, [12, 3])
    assert hash_block(b"root", None, [256]) != hash_block(b"root", None, [1])


@settings(deadline=None, derandomize=True)
@given(st.lists(st.text() | st.binary(), max_size=4), st.lists(st.text() | st.binary(), max_size=4))
def test_roots_agree_only_for_equal_parts(left: list[str | bytes], right: list[str | bytes]) -> None:
    assert (cache_root(b"key", *left) == cache_root(b"key", *right)) == (left == right)


def test_parts_are_not_run_together_and_a_text_is_not_its_bytes() -> None:
    assert cache_root(b"key", "ab", "c") != cache_root(b"key", "a", "bc")
    assert cache_root(b"key", "a") != cache_root(b"key", b"a")
    assert cache_root(b"key", "a") != cache_root(b"key", "a", "")


def test_another_key_or_another_salt_shares_nothing() -> None:
    roots = [
        cache_root(b"key", "model", "alice"),
        cache_root(b"key", "model", "bob"),
        cache_root(b"other key", "model", "alice"),
    ]
    chains = [hashes_of([1, 2, 3, 4], 2, root) for root in roots]
    assert len({block_hash for hashes in chains for block_hash in hashes}) == 6


def test_a_token_id_that_does_not_fit_is_refused_rather_than_cut() -> None:
    for token_id in (-1, 2**32):
        with pytest.raises(OverflowError):
            hash_block(b"root", None, [token_id])


def test_the_longest_known_beginning_is_found() -> None:
    pool = BlockPool(8)
    cache = PrefixCache(pool)
    hashes = hashes_of([1, 2, 3, 4, 5, 6, 7, 8], 2)
    block_ids = pool.allocate(4)
    for at in (0, 1, 3):
        cache.insert(hashes[at], block_ids[at])
    assert cache.lookup(hashes) == block_ids[:2], "a gap ends it"
    assert cache.lookup(hashes[:1]) == block_ids[:1]
    assert cache.lookup(hashes_of([9, 9], 2)) == []
    assert pool._refs[block_ids[0]] == 1, "looking takes no reference"


def test_the_first_block_of_a_hash_stays_and_a_second_one_is_free_after_use() -> None:
    pool = BlockPool(4)
    cache = PrefixCache(pool)
    (block_hash,) = hashes_of([1, 2], 2)
    first, second = pool.allocate(2)
    cache.insert(block_hash, first)
    cache.insert(block_hash, second)
    assert cache.lookup([block_hash]) == [first]
    pool.release([first, second])
    assert (pool.num_cached, pool.num_free) == (1, 2)


def test_an_evicted_block_is_not_found() -> None:
    pool = BlockPool(3)
    cache = PrefixCache(pool, record_events=True)
    hashes = hashes_of([1, 2, 3, 4], 2)
    block_ids = pool.allocate(2)
    for block_hash, block_id in zip(hashes, block_ids, strict=True):
        cache.insert(block_hash, block_id)
    pool.release(block_ids)
    pool.allocate(1)
    assert cache.lookup(hashes) == block_ids[:1], "the end of the chain went first"
    assert cache.drain_events() == [("stored", hashes[0]), ("stored", hashes[1]), ("evicted", hashes[1])]
    assert cache.drain_events() == []
    assert cache.hashes() == hashes[:1]


def test_a_block_cannot_stand_for_two_contents() -> None:
    pool = BlockPool(2)
    cache = PrefixCache(pool)
    (block_id,) = pool.allocate(1)
    cache.insert(b"a", block_id)
    with pytest.raises(AssertionError, match="already has other content"):
        cache.insert(b"b", block_id)


def test_events_are_not_kept_without_a_reader() -> None:
    pool = BlockPool(2)
    cache = PrefixCache(pool)
    cache.insert(b"a", pool.allocate(1)[0])
    assert cache.drain_events() == []


def test_clearing_frees_what_is_cached_and_leaves_what_is_held() -> None:
    pool = BlockPool(4)
    cache = PrefixCache(pool)
    cached, held = pool.allocate(2)
    cache.insert(b"a", cached)
    cache.insert(b"b", held)
    pool.release([cached])
    cache.clear()
    assert len(cache) == 0
    assert b"b" not in cache
    assert (pool.num_free, pool.num_cached, pool.num_held) == (2, 0, 1)
    pool.release([held])
    assert pool.num_free == 3
