"""Blocks are shared by tenants: who holds more than its part gives way, but never with its first sequence."""

from __future__ import annotations

import random

import pytest

from baton.engine.block_shares import BlockShares
from baton.engine.scheduler import SchedulerConfig
from baton.engine.sequence import Sequence, SequenceState
from baton.protocol import Share

from .test_scheduler import make, planned, sequence, step
from .test_scheduler_properties import FakeEngine

A, B = Share(b"a"), Share(b"b")


def holding(share: Share, *num_slots: int) -> list[Sequence]:
    made = [sequence("x", 3, share=share) for _ in num_slots]
    for each, num in zip(made, num_slots, strict=True):
        each.num_slots = num
    return made


def test_who_holds_most_for_its_weight_gives_up_its_last() -> None:
    a, b = holding(A, 40, 40, 40), holding(Share(b"b", 4.0), 60, 60)
    shares = BlockShares([*a, *b])
    assert shares.victim() is a[2]
    shares.give_up(a[2])
    shares.give_up(a[1])
    assert shares.victim() is None  # b has less than its part, and a's first is left to it


def test_who_comes_counts_among_those_that_share() -> None:
    a = holding(A, 40, 40)
    shares = BlockShares(a)
    assert shares.victim() is None
    assert shares.victim(sequence("y", 3, share=B)) is a[1]
    assert shares.is_within(sequence("y", 40, share=B))
    assert not shares.is_within(sequence("y", 41, share=B))
    assert not shares.is_within(sequence("y", 1, share=A))


def test_a_flood_that_holds_all_blocks_gives_way_to_who_comes_and_keeps_away_from_its_blocks() -> None:
    scheduler = make(num_blocks=24, max_num_seqs=16, max_num_batched_tokens=64)
    for i in range(30):
        scheduler.add(sequence(chr(ord("a") + i), 8, share=A))
    while not scheduler.num_preemptions:
        step(scheduler)
    small = sequence("S", 14, max_new=20, share=B)
    scheduler.add(small)
    plan = planned(scheduler)
    assert small in plan.admitted
    assert plan.preempted
    scheduler.commit(plan, [[5] for num in plan.num_samples if num])
    for _ in range(19):
        assert "S" in step(scheduler)
    assert small.is_full
    assert not small.num_preemptions


def test_who_receives_its_kv_gets_places_from_a_flood() -> None:
    scheduler = make(num_blocks=24, max_num_seqs=16, max_num_batched_tokens=64)
    for i in range(30):
        scheduler.add(sequence(chr(ord("a") + i), 8, share=A))
    while not scheduler.num_preemptions:
        step(scheduler)
    small = sequence("S", 12, share=B)
    scheduler.receive(small)
    granted = scheduler.reserve(small, 3)
    assert not granted
    step(scheduler)
    granted += scheduler.reserve(small, 3)
    assert len(granted) == 3
    scheduler.admit(small, 3, [77])
    assert any("S" in step(scheduler) for _ in range(3))


@pytest.mark.parametrize("behind", [0, 1])
@pytest.mark.parametrize("seed", range(2))
def test_what_needs_most_of_the_pool_ends_beside_another_tenants_arrivals_without_end(seed: int, behind: int) -> None:
    rng = random.Random(seed)
    config = SchedulerConfig(
        max_num_seqs=4, max_num_batched_tokens=12, max_model_len=44, block_size=4, max_num_waiting=100_000
    )
    engine = FakeEngine(config, 17, behind)
    large: list[Sequence] = []
    for i in range(1200):
        if rng.random() < 0.5:
            share = rng.choice([B, B, Share(b"c")])
            engine.scheduler.add(engine.new([rng.randrange(8, 12)], rng.randrange(1, 12), share=share))
        if i % 100 in (0, 1):
            large.append(engine.new([rng.randrange(8, 12) for _ in range(30)], 12, share=A))
            engine.scheduler.add(large[-1])
        engine.step()
        engine.check_blocks()
        engine.check_queues()
    assert engine.scheduler.num_preemptions
    assert sum(each.state is SequenceState.FINISHED for each in large) >= len(large) - 2
    engine.check_completed()
