"""A scheduler with host memory behind its blocks: whatever the tier does, every sequence gets the tokens it gets alone.

The tier here answers late, loses blocks, promises what it does not give, and moves bytes at the latest moment that the
protocol allows: a save when its block is about to be written, a load just before its end is said. Meanwhile it leaves nonsense
in the places of a load.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence as Names
from dataclasses import dataclass, field, replace
from typing import Literal

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from tests.engine.test_scheduler_properties import FakeEngine, prompts

from baton.engine.host_blocks import HostBlocks
from baton.engine.reload_cost import ReloadCost
from baton.engine.scheduler import SchedulerConfig
from baton.engine.sequence import Sequence, SequenceState
from baton.engine.windows import Reach
from baton.host_tier import Loaded, TierCounts

NONSENSE = -7
CONFIG = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=16, max_model_len=44, block_size=2)


@dataclass(eq=False)
class Asked:
    names: list[bytes]
    num_blocks: int | None = None
    block_ids: list[int] = field(default_factory=list)
    is_over: bool = False


class ScriptedTier:
    def __init__(self, engine: FakeEngine, rng: random.Random, saves: Literal["evicted", "computed"], capacity: int):
        self.engine, self.rng, self.saves, self.capacity = engine, rng, saves, capacity
        self.kept: dict[bytes, list[int]] = {}
        self.saving: list[tuple[bytes, int]] = []
        self.asked: list[Asked] = []
        self.loading: list[Asked] = []
        self.dropped: list[bytes] = []
        self.num_loaded = 0

    @property
    def is_busy(self) -> bool:
        return bool(self.asked or self.loading)

    def save(self, names: Names[bytes], block_ids: Names[int]) -> None:
        assert len(set(block_ids)) == len(block_ids)
        for name, block_id in zip(names, block_ids, strict=True):
            if self.rng.random() < 0.1:
                self.dropped.append(name)
            elif name not in self.kept:
                self.saving.append((name, block_id))

    def guard(self, block_ids: Names[int]) -> None:
        self.end_saves(set(block_ids))

    def end_saves(self, block_ids: set[int]) -> None:
        for name, block_id in [each for each in self.saving if each[1] in block_ids]:
            self.saving.remove((name, block_id))
            self.kept[name] = self.content(block_id)
        while len(self.kept) > self.capacity:
            name = next(iter(self.kept))
            del self.kept[name]
            self.dropped.append(name)

    def look_up(self, names: Names[bytes]) -> Asked:
        asked = Asked(list(names))
        self.asked.append(asked)
        if self.rng.random() < 0.4:
            self.answer(asked)
        return asked

    def answer(self, asked: Asked) -> None:
        num = next((at for at, name in enumerate(asked.names) if name not in self.kept), len(asked.names))
        asked.num_blocks = len(asked.names) if self.rng.random() < 0.1 else num

    def drop(self, lookup: Asked) -> None:
        self.asked.remove(lookup)

    def load(self, lookup: Asked, block_ids: Names[int]) -> None:
        self.asked.remove(lookup)
        assert lookup.num_blocks is not None
        assert 0 < len(block_ids) <= lookup.num_blocks
        assert not {block_id for _, block_id in self.saving} & set(block_ids), "not guarded"
        lookup.block_ids = list(block_ids)
        self.loading.append(lookup)
        for block_id in block_ids:
            self.write(block_id, [NONSENSE] * self.engine.block_size)

    def poll(self) -> list[Loaded]:
        for asked in self.asked:
            if asked.num_blocks is None and self.rng.random() < 0.5:
                self.answer(asked)
        ended = [asked for asked in self.loading if self.rng.random() < 0.4]
        return [self.end(asked) for asked in ended]

    def end(self, asked: Asked) -> Loaded:
        self.loading.remove(asked)
        num_good = 0
        for name, block_id in zip(asked.names, asked.block_ids, strict=False):
            if name not in self.kept or self.rng.random() < 0.05:
                break
            self.write(block_id, self.kept[name])
            num_good += 1
        self.num_loaded += num_good
        return Loaded(asked, num_good)

    def take_dropped(self) -> list[bytes]:
        dropped, self.dropped = self.dropped, []
        return dropped

    def counts(self) -> TierCounts:
        return TierCounts()

    def close(self) -> None: ...

    def content(self, block_id: int) -> list[int]:
        first = block_id * self.engine.block_size
        return [self.engine.kv[slot] for slot in range(first, first + self.engine.block_size)]

    def write(self, block_id: int, values: list[int]) -> None:
        for offset, value in enumerate(values):
            self.engine.kv[block_id * self.engine.block_size + offset] = value


class TieredEngine(FakeEngine):
    def __init__(
        self, config: SchedulerConfig, num_blocks: int, behind: int, tier: str, capacity: int, seed: int
    ) -> None:
        super().__init__(config, num_blocks, behind)
        self.tier = ScriptedTier(self, random.Random(seed), tier, capacity)
        self.host = self.scheduler.host = HostBlocks(
            self.tier,
            self.pool,
            self.cache,
            ReloadCost(block_nbytes=1, block_size=config.block_size),
            self.reach,
            clock=lambda: 0.0,
        )
        self.cache.record_events = True
        self.told: set[bytes] = set()
        plan = self.scheduler.plan

        def plan_and_flush():
            planned = plan()
            self.host.flush()
            return planned

        self.scheduler.plan = plan_and_flush  # type: ignore[method-assign]

    def step(self) -> None:
        self.scheduler.take_restored()
        super().step()
        self.tier.end_saves({block_id for _, block_id in self.tier.saving if self.tier.rng.random() < 0.2})

    def held_by_others(self) -> Counter[int]:
        return Counter(block_id for asked in self.tier.loading for block_id in asked.block_ids)

    def check_told(self) -> None:
        """Whoever reads the events knows what is on the device, and of no block that is nowhere."""
        for kind, name in self.cache.drain_events():
            (self.told.add if kind == "stored" else self.told.discard)(name)
        assert self.told == set(self.cache.hashes())
        assert set(self.cache._block_of) - self.cache._untold <= self.told


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    requests=st.lists(st.tuples(prompts, st.integers(1, 15), st.integers(0, 2)), min_size=4, max_size=16),
    extra=st.sampled_from([0, 2, 12]),
    behind=st.integers(0, 2),
    saves=st.sampled_from(["evicted", "computed"]),
    capacity=st.sampled_from([2, 20, 1000]),
    windows=st.sampled_from([(None,), (None,), (7,), (None, 7), (None, None, 12)]),
)
def test_tokens_are_those_of_each_sequence_alone(
    seed: int, requests: list, extra: int, behind: int, saves: str, capacity: int, windows: tuple[int | None, ...]
) -> None:
    rng = random.Random(seed)
    config = replace(CONFIG, windows=windows)
    least = Reach(2, windows, CONFIG.max_num_batched_tokens).num_held(CONFIG.max_model_len - 1)
    engine = TieredEngine(config, 1 + least + extra, behind, saves, capacity, seed)
    scheduler = engine.scheduler
    coming = [engine.new(*request) for request in requests * 2]
    alive: list[Sequence] = []
    bound = 200 + 30 * sum(s.max_len for s in coming)
    while coming or scheduler.has_work:
        event = rng.random()
        if coming and event < 0.3:
            alive.append(coming.pop())
            scheduler.add(alive[-1])
        elif alive and event > 0.97:
            scheduler.finish(alive.pop(rng.randrange(len(alive))))
        elif event > 0.96:
            scheduler.discard()
            engine.launched.clear()
        else:
            engine.step()
        engine.check_blocks()
        engine.check_launched()
        engine.check_queues()
        engine.check_cache()
        engine.check_told()
        bound -= 1
        assert bound > 0, "no end in sight"
    assert set(alive) <= {*engine.completed, *(s for s in alive if s.state is SequenceState.FINISHED)}
    engine.check_completed()
    engine.check_empty()
    assert not engine.tier.asked
    assert not engine.tier.loading


def conversation(engine: TieredEngine, prompt: list[int]) -> Sequence:
    sequence = engine.new(prompt, 4)
    engine.scheduler.add(sequence)
    while engine.scheduler.has_work:
        engine.step()
        engine.check_blocks()
    return sequence


@pytest.mark.parametrize("saves", ["evicted", "computed"])
def test_what_others_have_driven_out_comes_back(saves: str) -> None:
    engine = TieredEngine(CONFIG, 24, 1, saves, 1000, 0)
    engine.tier.rng = Honest()
    prompt = [1, 2, 3, 4, 5, 6] * 4
    first = conversation(engine, prompt)
    for other in range(8, 12):
        conversation(engine, [other] * 30)
    assert not engine.cache.lookup(first.block_hashes)
    again = conversation(engine, prompt)
    assert again.num_restored == again.num_cached == 22
    assert engine.host.num_restored_tokens == 22
    engine.check_completed()


@pytest.mark.parametrize("windows", [(7,), (None, 7), (None, None, 12)])
def test_what_windows_still_read_comes_back_with_the_rest(windows: tuple[int | None, ...]) -> None:
    config = replace(CONFIG, windows=windows)
    engine = TieredEngine(config, 24 * len(windows), 1, "evicted", 1000, 0)
    engine.tier.rng = Honest()
    prompt = [1, 2, 3, 4, 5, 6] * 4
    conversation(engine, prompt)
    for other in range(8, 12):
        conversation(engine, [other] * 30)
    again = conversation(engine, [*prompt, 8, 9, 10])
    assert again.num_restored == 24
    assert engine.tier.num_loaded < 12 * len(windows), "what a window has passed stays away"
    engine.check_completed()


def test_who_asks_the_host_and_finds_no_blocks_is_stuck_as_any_other() -> None:
    engine = TieredEngine(CONFIG, 24, 0, "computed", 1000, 0)
    engine.tier.rng = Silent()
    older, waiting = engine.new([9] * 40, 4), engine.new([1, 2, 3, 4, 5, 6] * 4, 4)
    engine.scheduler.receive(older)
    engine.scheduler.add(waiting)
    assert engine.scheduler.plan() is None
    assert engine.tier.asked
    assert not engine.scheduler.is_stuck
    assert len(engine.scheduler.reserve(older, 20)) == 20
    assert engine.scheduler.plan() is None
    assert engine.scheduler.is_stuck, "nothing but the receiving one's blocks helps"


def test_what_is_coming_for_one_is_awaited_by_the_next() -> None:
    engine = TieredEngine(CONFIG, 48, 0, "evicted", 1000, 0)
    engine.tier.rng = Honest()
    prompt = [1, 2, 3, 4, 5, 6] * 4
    conversation(engine, prompt)
    for other in range(8, 12):
        conversation(engine, [other] * 30)
    twins = [engine.new(prompt, 4) for _ in range(2)]
    for twin in twins:
        engine.scheduler.add(twin)
    while engine.scheduler.has_work:
        engine.step()
    assert [twin.num_cached for twin in twins] == [22, 22]
    assert engine.tier.num_loaded == 11, "the second found the first one's"


def test_what_is_cheaper_to_compute_is_not_asked_back() -> None:
    engine = TieredEngine(CONFIG, 24, 0, "evicted", 1000, 0)
    engine.tier.rng = Honest()
    conversation(engine, [1, 2, 3, 4, 5, 6] * 4)
    for other in range(8, 12):
        conversation(engine, [other] * 30)
    engine.host.cost.computed(1_000_000_000, 1e-9)
    engine.host.cost.turned(1.0)
    again = conversation(engine, [1, 2, 3, 4, 5, 6] * 4)
    assert again.num_restored == 0
    assert not engine.tier.asked


class Silent(random.Random):
    """Draws nothing likely: no answer comes."""

    def random(self) -> float:
        return 0.99


class Honest(random.Random):
    """Draws nothing unlikely."""

    def random(self) -> float:
        return 0.3
