"""A block is held, cached or free, and in no two of these; the oldest unused content is given up first."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from baton.block_hash import hash_block
from baton.engine.block_pool import BlockPool
from baton.engine.prefix_cache import PrefixCache
from baton.errors import OutOfBlocks


def counts(pool: BlockPool) -> tuple[int, int, int]:
    return pool.num_free, pool.num_cached, pool.num_held


def test_every_block_but_the_scratch_block_is_handed_out_once() -> None:
    pool = BlockPool(6)
    assert pool.num_total == 5
    assert sorted(pool.allocate(2) + pool.allocate(3)) == [1, 2, 3, 4, 5]
    assert counts(pool) == (0, 0, 5)


def test_asking_for_too_many_takes_nothing() -> None:
    pool = BlockPool(4)
    pool.allocate(2)
    with pytest.raises(OutOfBlocks, match="2 blocks wanted, 1 of 3 available"):
        pool.allocate(2)
    assert counts(pool) == (1, 0, 2)
    assert pool.allocate(0) == []


def test_a_pool_needs_a_block_besides_the_scratch_block() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        BlockPool(1)


def test_a_shared_block_stays_until_its_last_holder_gives_it_back() -> None:
    pool = BlockPool(3)
    block_ids = pool.allocate(1)
    pool.share(block_ids)
    pool.release(block_ids)
    assert counts(pool) == (1, 0, 1)
    pool.release(block_ids)
    assert counts(pool) == (2, 0, 0)


def test_a_block_released_twice_is_caught() -> None:
    pool = BlockPool(3)
    block_ids = pool.allocate(1)
    pool.release(block_ids)
    with pytest.raises(AssertionError, match="released more often"):
        pool.release(block_ids)


def test_a_free_block_cannot_be_shared() -> None:
    pool = BlockPool(3)
    block_ids = pool.allocate(1)
    pool.release(block_ids)
    with pytest.raises(KeyError):
        pool.share(block_ids)


def test_a_marked_block_is_cached_when_released_and_can_be_shared_again() -> None:
    pool = BlockPool(3)
    (block_id,) = pool.allocate(1)
    pool.mark(block_id)
    pool.release([block_id])
    assert counts(pool) == (1, 1, 0)
    assert pool.num_available == 2
    assert pool.num_unreferenced([block_id]) == 1
    pool.share([block_id])
    assert counts(pool) == (1, 0, 1)
    assert pool.num_unreferenced([block_id]) == 0


def test_free_blocks_go_before_cached_ones_and_the_end_of_a_chain_before_its_beginning() -> None:
    pool = BlockPool(6)
    evicted: list[int] = []
    pool.on_evict = evicted.append
    older, newer = pool.allocate(2), pool.allocate(2)
    for block_id in older + newer:
        pool.mark(block_id)
    pool.release(older)
    pool.release(newer)
    pool.allocate(1)
    assert evicted == []
    pool.allocate(3)
    assert evicted == [older[1], older[0], newer[1]]


def test_a_use_makes_a_cached_block_the_last_to_go() -> None:
    pool = BlockPool(3)
    evicted: list[int] = []
    pool.on_evict = evicted.append
    first, second = pool.allocate(1), pool.allocate(1)
    for block_id in first + second:
        pool.mark(block_id)
    pool.release(first)
    pool.release(second)
    pool.share(first)
    pool.release(first)
    pool.allocate(1)
    assert evicted == second


class PoolMachine(RuleBasedStateMachine):
    """Pool and index against a model: who holds what, what each block contains, and what was used when."""

    @initialize(num_blocks=st.integers(2, 12))
    def start(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.cache = PrefixCache(self.pool, record_events=True)
        self.owners: list[list[int]] = []  # each a table of block ids
        self.content: dict[int, int] = {}  # block id -> what its holder wrote
        self.told: set[bytes] = set()  # what the events say
        self.num_written = 0

    def hash_of(self, content: int) -> bytes:
        return hash_block(b"root", None, [content])

    @rule(count=st.integers(0, 6))
    def allocate(self, count: int) -> None:
        if count > self.pool.num_available:
            with pytest.raises(OutOfBlocks):
                self.pool.allocate(count)
            return
        num_free, num_cached = self.pool.num_free, self.pool.num_cached
        block_ids = self.pool.allocate(count)
        held = {block_id for table in self.owners for block_id in table}
        assert not held & set(block_ids), "a block owned twice"
        assert self.pool.num_cached == num_cached - max(0, count - num_free), "evicted without need"
        for block_id in block_ids:
            self.num_written += 1
            self.content[block_id] = self.num_written
        self.owners.append(block_ids)

    @precondition(lambda self: getattr(self, "owners", None))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        table = self.owners.pop(data.draw(st.integers(0, len(self.owners) - 1)))
        self.pool.release(table)

    @precondition(lambda self: any(getattr(self, "owners", [])))
    @rule(data=st.data())
    def insert(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from([table for table in self.owners if table]))
        block_id = data.draw(st.sampled_from(table))
        if block_id not in self.cache._hash_of:
            self.cache.insert(self.hash_of(self.content[block_id]), block_id)

    @precondition(lambda self: any(getattr(self, "owners", [])) and len(getattr(self, "cache", ())))
    @rule(data=st.data())
    def insert_what_is_known_elsewhere(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from([table for table in self.owners if table]))
        block_id = data.draw(st.sampled_from(table))
        block_hash = data.draw(st.sampled_from(self.cache.hashes()))
        before = dict(self.cache._block_of)
        if block_id not in self.cache._hash_of:
            self.cache.insert(block_hash, block_id)
            assert self.cache._block_of == before, "the first block keeps the hash"

    @precondition(lambda self: len(getattr(self, "cache", ())))
    @rule(data=st.data())
    def match(self, data: st.DataObject) -> None:
        hashes = data.draw(st.lists(st.sampled_from(self.cache.hashes()), min_size=1, unique=True))
        expected = [self.cache._block_of[block_hash] for block_hash in hashes]
        assert self.cache.lookup([*hashes, b"unknown"]) == expected
        block_ids = self.cache.lookup([*hashes, b"unknown", hashes[0]])
        self.pool.share(block_ids)
        assert block_ids == expected
        assert [self.hash_of(self.content[block_id]) for block_id in block_ids] == hashes
        self.owners.append(block_ids)

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        assert self.pool.num_cached == 0

    @invariant()
    def everything_is_counted_once(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.verify()
        references = Counter(block_id for table in self.owners for block_id in table)
        for block_id in range(self.pool.num_total + 1):
            assert self.pool._refs[block_id] == references[block_id]
        assert self.pool.num_held == len(references)
        assert self.pool.num_free + self.pool.num_cached + self.pool.num_held == self.pool.num_total

    @invariant()
    def hash_and_block_are_a_bijection_and_events_tell_it(self) -> None:
        if not hasattr(self, "pool"):
            return
        block_of = self.cache._block_of
        assert {block_id: block_hash for block_hash, block_id in block_of.items()} == self.cache._hash_of
        for block_hash, block_id in block_of.items():
            assert block_hash == self.hash_of(self.content[block_id]), "a hash leads to other content"
        for kind, block_hash in self.cache.drain_events():
            assert (block_hash in self.told) == (kind == "evicted")
            self.told ^= {block_hash}
        assert self.told == set(self.cache.hashes())


PoolMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None, derandomize=True)
TestAnyOrderOfUse = PoolMachine.TestCase
