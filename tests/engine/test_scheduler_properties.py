"""Whatever the scheduler is put through, every sequence gets the tokens that it would get alone.

The fake model reads its cache as a real one does: the KV of a token is made from the KV of the token before, found
through the block table, and the next token from the KV of the last. So a wrong block, a stale one, or one shared by
mistake changes tokens, and the step checks each slot of each row besides. Launched steps are executed as late as
possible, when they are collected, while imports are written at once: nothing may rely on one stream's order.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from baton.block_hash import block_name
from baton.engine.block_pool import BlockPool
from baton.engine.prefix_cache import PrefixCache
from baton.engine.scheduler import Scheduler, SchedulerConfig
from baton.engine.sequence import Sequence, SequenceState
from baton.engine.step_plan import StepPlan
from baton.engine.windows import Reach
from baton.prompt import Prompt
from baton.protocol import NOBODY, SamplingParams, Share
from baton.step_learning import StepLearner
from baton.step_times import StepTimes
from baton.worker.pacer import Pacer

PROMPTS_TAKE_LONG = StepTimes(5e-3, 1e-6, 0.0, 0.0, 1e-3, 0.0, 0.0)
ROWS_TAKE_LONG = StepTimes(1e-3, 5e-3, 1e-6, 0.0, 1e-3, 0.0, 0.0)
VOCAB = 50
EOS = 7
MODULUS = 1_000_003


def kv_of(previous: int, token_id: int) -> int:
    """Give the fake KV of a token: a number that depends on all tokens before it."""
    return (previous * 31 + token_id + 1) % MODULUS


def chain(token_ids: list[int]) -> list[int]:
    """Give the KV of each token of a sequence computed alone."""
    values: list[int] = []
    for token_id in token_ids:
        values.append(kv_of(values[-1] if values else 0, token_id))
    return values


def alone(prompt: list[int], max_len: int) -> list[int]:
    """Generate without any scheduler."""
    token_ids = list(prompt)
    value = chain(token_ids)[-1]
    while len(token_ids) < max_len:
        token_ids.append(value % VOCAB)
        if token_ids[-1] == EOS:
            break
        value = kv_of(value, token_ids[-1])
    return token_ids


@dataclass
class Launched:
    """A step as the device got it: tables and known tokens as they were at launch."""

    plan: StepPlan
    tables: list[list[list[int]]]  # a row, a group
    known: list[list[int]]
    guesses: dict[Sequence, list[int]]


class FakeEngine:
    """The loop around a scheduler, with up to `behind` steps in flight while the next is planned."""

    def __init__(self, config: SchedulerConfig, num_blocks: int, behind: int, num_guessed: int = 0) -> None:
        self.pool = BlockPool(num_blocks)
        self.cache = PrefixCache(self.pool)
        self.scheduler = Scheduler(config, self.pool, self.cache)
        self.block_size = config.block_size
        self.behind = behind
        self.num_guessed = num_guessed
        self.rng = random.Random(0)
        self.reach = self.scheduler.reach
        self.kv: dict[int, int] = {}  # slot -> KV
        self.sampled: dict[tuple[Sequence, int], int] = {}  # (sequence, position) -> token, on the device
        self.launched: deque[Launched] = deque()
        self.sequences: list[Sequence] = []  # all that are not given back
        self.num_created = 0
        self.copied: dict[Sequence, list[list[int]]] = {}  # tables as the device has them, grown at their ends
        self.completed: list[Sequence] = []
        self.published: list[tuple[int, list[int]]] = []  # (block, what it holds) with a reference of the reader's
        self.num_steps = 0

    def new(
        self, prompt: list[int], max_new: int, priority: int = 0, reuse_prefix: bool = True, share: Share = NOBODY
    ) -> Sequence:
        sequence = Sequence(
            str(self.num_created),
            Prompt(prompt),
            SamplingParams(),
            max_len=len(prompt) + max_new,
            priority=priority,
            root=b"root",
            reuse_prefix=reuse_prefix,
            share=share,
        )
        self.sequences.append(sequence)
        self.num_created += 1
        return sequence

    def step(self) -> None:
        """Plan and launch; collect when behind enough, or when nothing can be planned."""
        scheduler = self.scheduler
        plan = scheduler.plan()
        if plan is not None:
            self.check_plan(plan)
            guesses = self.guess(plan)
            known = [list(sequence.token_ids) for sequence in plan.sequences]
            self.launched.append(Launched(plan, self.copy_tables(plan), known, guesses))
        elif not (self.launched or scheduler.receiving or scheduler.held or self.published or scheduler.is_restoring):
            assert not scheduler.has_work, "stuck: work, and no plan"
        if self.launched and (plan is None or len(self.launched) > self.behind):
            self.collect()

    def guess(self, plan: StepPlan) -> dict[Sequence, list[int]]:
        """Have some decodes verify guessed tokens in the same step, as far as tokens and blocks reach."""
        guesses: dict[Sequence, list[int]] = {}
        for sequence in plan.sequences[: plan.num_decodes] if self.num_guessed else []:
            at = plan.sequences.index(sequence)
            start = plan.starts[at]
            wanted = min(self.num_guessed, self.scheduler.config.max_num_batched_tokens - plan.num_tokens)
            fitting = self.scheduler.blocks.grow(sequence, min(start + 1 + wanted, sequence.max_len - 1))
            if sequence.num_pending > 1 or not plan.num_samples[at] or fitting <= start + 1:
                continue
            plan.num_decodes -= 1
            plan.num_tokens -= 1
            for column in (plan.sequences, plan.starts, plan.num_new, plan.num_samples):
                del column[at]
            sequence.num_computed, sequence.num_pending = start, sequence.num_pending - 1
            sequence.num_in_flight -= 1
            plan.add(sequence, fitting - start, fitting - start)
            right = alone(sequence.token_ids, fitting)[start + 1 :]
            guesses[sequence] = [id if self.rng.random() < 0.7 else 0 for id in right]
            guesses[sequence] += [0] * (fitting - start - 1 - len(right))
        assert plan.num_tokens == sum(plan.num_new) <= self.scheduler.config.max_num_batched_tokens
        return guesses

    def copy_tables(self, plan: StepPlan) -> list[list[list[int]]]:
        """Copy the rows' block tables, of which only what was added travels, as long as nothing is preempted."""
        for sequence in plan.preempted:
            self.copied.pop(sequence, None)
        for sequence in plan.sequences:
            tables = self.copied.setdefault(sequence, [[] for _ in sequence.tables])
            for group, (table, own) in enumerate(zip(tables, sequence.tables, strict=True)):
                table += own[len(table) :]
                first = sequence.num_passed[group]
                assert table[first:] == own[first:], "it lost its blocks and the plan does not say so"
                assert not any(own[:first])
                assert all(own[first:])
        return [[list(table) for table in self.copied[sequence]] for sequence in plan.sequences]

    def collect(self) -> None:
        """Execute the oldest launched step and commit it; finish what has reached its end."""
        launched = self.launched.popleft()
        token_lists = self.execute(launched)
        self.num_steps += 1
        self.scheduler.commit(launched.plan, token_lists)
        for sequence, samples in zip(launched.plan.sequences, launched.plan.num_samples, strict=True):
            if samples and sequence.state is SequenceState.RUNNING and self.ended(sequence):
                self.scheduler.finish(sequence)
                self.completed.append(sequence)

    def ended(self, sequence: Sequence) -> bool:
        return sequence.is_full or sequence.token_ids[-1] == EOS

    def execute(self, launched: Launched) -> list[list[int]]:
        plan, token_lists = launched.plan, []
        rows = zip(plan.sequences, plan.starts, plan.num_new, plan.num_samples, strict=True)
        for (sequence, start, num_new, num_samples), tables, known in zip(
            rows, launched.tables, launched.known, strict=True
        ):
            end = start + num_new
            guesses = launched.guesses.get(sequence, [])
            token_ids = known[:end] + [self.sampled[sequence, at] for at in range(len(known), end - len(guesses))]
            token_ids += guesses
            values = chain(token_ids)
            for group, table in enumerate(tables):
                for position in range(start, end):
                    assert not self.is_findable(table[position // self.block_size]), "written while findable"
                    previous = self.kv[self.slot(table, position - 1)] if position else 0
                    self.kv[self.slot(table, position)] = kv_of(previous, token_ids[position])
                seen = range(max(0, start - (self.reach.windows[group] or end) + 1), end)
                found = [self.kv[self.slot(table, position)] for position in seen]
                assert found == values[seen.start :], f"{sequence}: its blocks hold something else"
            if num_samples:
                sampled = [value % VOCAB for value in values[end - num_samples :]]
                num_right = next((i for i, id in enumerate(guesses) if id != sampled[i] or id == EOS), len(guesses))
                token_lists.append(sampled[: num_right + 1])
                self.sampled[sequence, end - num_samples + len(token_lists[-1])] = token_lists[-1][-1]
        return token_lists

    def slot(self, table: list[int], position: int) -> int:
        block_id = table[position // self.block_size]
        assert block_id > 0, "the scratch block was handed out"
        return block_id * self.block_size + position % self.block_size

    def is_findable(self, block_id: int) -> bool:
        return block_id in self.cache._hash_of

    def missing(self, sequence: Sequence) -> list[tuple[int, int]]:
        """List the (block, group) that a receiving sequence has asked for, in the order of their places."""
        num_tokens = len(sequence.token_ids)
        last = num_tokens // self.block_size
        tail = [(last, group) for group in range(self.reach.num_groups)] if num_tokens % self.block_size else []
        return [*self.reach.wanted(sequence.num_computed // self.block_size, last, last), *tail]

    def name_of(self, sequence: Sequence, at: int, group: int, num_tokens: int) -> bytes:
        """Name a block of the first `num_tokens`: by its chain hash, or as their tail if they do not fill it."""
        if at < num_tokens // self.block_size:
            return block_name(sequence.block_hashes[at], group)
        return block_name(sequence.hash_tail(num_tokens, self.block_size), group)

    def import_kv(self, sequence: Sequence, num_blocks: int) -> None:
        """Write the KV of the first blocks that a sequence receives, as a transfer does: at once."""
        values = chain(sequence.token_ids)
        for at, group in self.missing(sequence)[:num_blocks]:
            block_id = sequence.tables[group][at]
            assert not self.is_findable(block_id)
            for offset, value in enumerate(values[at * self.block_size : (at + 1) * self.block_size]):
                self.kv[block_id * self.block_size + offset] = value
        for at, group in self.missing(sequence)[num_blocks:]:  # half of a transfer that failed
            for block_id in sequence.tables[group][at : at + 1]:
                self.kv |= dict.fromkeys(range(block_id * self.block_size, (block_id + 1) * self.block_size), -1)

    def publish(self, sequence: Sequence, first: int) -> None:
        """Have a reader hold what is computed of a sequence from block `first` on, as a prefill leg's exporter does."""
        num_tokens, values = sequence.num_prompt_tokens, chain(sequence.token_ids[: sequence.num_prompt_tokens])
        last = num_tokens // self.block_size
        block_ids, names = self.scheduler.blocks.complete(sequence, first, num_tokens)
        wanted = list(self.reach.wanted(first, min(last, sequence.num_indexed), last))
        if first <= last and sequence.num_output_tokens and num_tokens % self.block_size:
            wanted += [(last, group) for group in range(self.reach.num_groups)]
        assert names == [self.name_of(sequence, at, group, num_tokens) for at, group in wanted]
        self.pool.share(block_ids)
        for block_id, (at, _) in zip(block_ids, wanted, strict=True):
            self.published.append((block_id, values[at * self.block_size : (at + 1) * self.block_size]))

    def held_by_others(self) -> Counter[int]:
        """Count the references of who is neither a sequence nor a reader."""
        return Counter()

    def let_go(self) -> None:
        """End the readers."""
        self.pool.release([block_id for block_id, _ in self.published])
        self.published.clear()

    # -- what must hold -----------------------------------------------------------------------------------

    def check_plan(self, plan: StepPlan) -> None:
        config = self.scheduler.config
        assert 0 < len(plan.sequences) <= config.max_num_seqs
        assert plan.num_tokens == sum(plan.num_new) <= config.max_num_batched_tokens
        assert len(set(plan.sequences)) == len(plan.sequences)
        assert plan.num_decodes == plan.num_new.count(1)
        assert all(count == 1 for count in plan.num_new[: plan.num_decodes]), "decodes come first"
        for sequence, start, num_new, samples in zip(
            plan.sequences, plan.starts, plan.num_new, plan.num_samples, strict=True
        ):
            assert sequence.state is SequenceState.RUNNING
            assert sequence.num_computed == start + num_new <= sequence.max_len - 1
            assert samples == (start + num_new == sequence.num_tokens - 1 and sequence.num_pending > 0)
            assert sequence.num_computed <= sequence.num_slots
            assert all(len(table) * self.block_size == sequence.num_slots for table in sequence.tables)

    def check_blocks(self) -> None:
        """Compare the pool's counts with who holds what; free + cached + held = total."""
        self.pool.verify()
        self.sequences = [s for s in self.sequences if s.state is not SequenceState.FINISHED or s.num_in_flight]
        owners = Counter(id for sequence in self.sequences for table in sequence.tables for id in table if id)
        read = Counter(block_id for block_id, _ in self.published) + self.held_by_others()
        for block_id in range(1, self.pool.num_total + 1):
            assert self.pool._refs[block_id] == owners[block_id] + read[block_id]
        for block_id, values in self.published:
            first = block_id * self.block_size
            assert [self.kv[first + offset] for offset in range(len(values))] == values, "changed under a reader"
        names: dict[int, bytes] = {}
        for sequence in self.sequences:
            held = [(at, id) for table in sequence.tables for at, id in enumerate(table) if id]
            assert len({block_id for _, block_id in held}) == len(held), "a block twice in one sequence"
            for group, table in enumerate(sequence.tables):
                for block_hash, block_id in zip(sequence.block_hashes, table, strict=False):
                    name = block_name(block_hash, group)
                    assert owners[block_id] < 2 or names.setdefault(block_id, name) == name, "shared, and not by hash"
            for at, block_id in held:
                if owners[block_id] > 1:
                    assert at < sequence.num_indexed, "shared, and not through the prefix cache"
            if sequence.state is SequenceState.RUNNING and not sequence.num_in_flight:
                self.check_windows(sequence)
        pool = self.pool
        assert pool.num_free + pool.num_cached + pool.num_held == pool.num_total

    def check_launched(self) -> None:
        """What a launched step reads or writes stays its sequence's until the step is committed."""
        for launched in self.launched:
            plan = launched.plan
            rows = zip(plan.sequences, plan.starts, plan.num_new, launched.tables, strict=True)
            for sequence, start, num_new, tables in rows:
                last = -(-(start + num_new) // self.block_size)
                for group, table in enumerate(tables):
                    first = max(0, start - (self.reach.windows[group] or start + 1) + 1) // self.block_size
                    assert sequence.tables[group][first:last] == table[first:last], "given up under a launched step"

    def check_windows(self, sequence: Sequence) -> None:
        """Nothing is held of what no later step reads, beyond the block in which the window ends."""
        for group in self.reach.windowed:
            first = self.reach.first_block(group, sequence.num_computed // self.block_size)
            window = self.reach.windows[group] or 0
            assert sequence.num_passed[group] >= first >= (sequence.num_computed - window) // self.block_size - 1

    def check_queues(self) -> None:
        scheduler = self.scheduler
        for ranked in (scheduler.waiting, scheduler.running):
            assert [s.rank for s in ranked] == sorted(s.rank for s in ranked)
        assert len(scheduler.running) <= scheduler.config.max_num_seqs
        assert all(s.state is SequenceState.WAITING and not s.num_in_flight for s in scheduler.waiting)
        assert all(s.state is SequenceState.RUNNING for s in scheduler.running)
        assert len(scheduler._in_flight) == len(self.launched)
        if not self.launched:
            assert not scheduler._landing._hashes, "a prefix is said to be computed, and is not"

    def check_cache(self) -> None:
        """Hold every findable block against what its hash stands for."""
        block_of, hash_of = self.cache._block_of, self.cache._hash_of
        assert {block_id: block_hash for block_hash, block_id in block_of.items()} == hash_of
        for sequence in self.sequences:
            values = chain(sequence.token_ids)
            for at, block_hash in enumerate(sequence.block_hashes):
                for group in range(self.reach.num_groups):
                    name = block_name(block_hash, group)
                    if name in block_of:
                        first = at * self.block_size
                        slot = block_of[name] * self.block_size
                        stored = [self.kv[slot + offset] for offset in range(self.block_size)]
                        assert stored == values[first : first + self.block_size]

    def check_completed(self) -> None:
        for sequence in self.completed:
            prompt = sequence.token_ids[: sequence.num_prompt_tokens]
            assert sequence.token_ids == alone(prompt, sequence.max_len)

    def check_empty(self) -> None:
        """After quiesce every block is back."""
        self.let_go()
        self.pool.verify()
        assert self.pool.num_held == 0
        assert not self.scheduler.has_work
        assert not self.scheduler.held | self.scheduler.receiving


Drawn = tuple[SchedulerConfig, int, int, int]

shares = st.sampled_from([NOBODY, Share(b"a"), Share(b"b"), Share(b"c", 3.0)])
prompts = st.builds(
    lambda shared, own: ([1, 2, 3, 4, 5, 6] * 4)[:shared] + own,
    st.integers(0, 20),
    st.lists(st.integers(8, 11), min_size=1, max_size=8),
)
"""Prompts with beginnings in common, some of them equal."""


@st.composite
def configs(draw: st.DrawFn) -> Drawn:
    """Draw a scheduler's bounds, the size of the pool, how many steps the host is behind, and tokens guessed a row."""
    max_num_seqs = draw(st.integers(1, 6))
    block_size = draw(st.sampled_from([1, 2, 4]))
    max_model_len = 44
    windows = draw(st.sampled_from([(None,), (None,), (7,), (None, 7), (4, 9), (None, None, 12)]))
    max_num_batched_tokens = max_num_seqs + draw(st.sampled_from([0, 3, 10, 60]))
    least = Reach(block_size, windows, max_num_batched_tokens).num_held(max_model_len - 1)
    config = SchedulerConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        windows=windows,
        max_model_len=max_model_len,
        block_size=block_size,
        enable_chunked_prefill=draw(st.booleans()),
        enable_prefix_caching=draw(st.sampled_from([True, True, False])),
        max_prefill_chunk=draw(st.sampled_from([None, 1, 5])),
    )
    num_blocks = 1 + least + draw(st.sampled_from([0, 1, 5, 2 * least]))
    return config, num_blocks, draw(st.integers(0, 2)), draw(st.sampled_from([0, 0, 1, 5]))


class SchedulerMachine(RuleBasedStateMachine):
    """Requests of every kind come, stop, fail and are taken over, in any order."""

    engine: FakeEngine

    @initialize(drawn=configs())
    def start(self, drawn: Drawn) -> None:
        self.engine = FakeEngine(*drawn)
        self.aborted: set[Sequence] = set()

    def pick(self, data: st.DataObject, state: SequenceState) -> Sequence:
        return data.draw(st.sampled_from([s for s in self.engine.sequences if s.state is state]))

    def some(self, state: SequenceState) -> bool:
        return hasattr(self, "engine") and any(s.state is state for s in self.engine.sequences)

    @rule(prompt=prompts, max_new=st.integers(1, 15), priority=st.integers(0, 2), reuse=st.booleans(), share=shares)
    def add(self, prompt: list[int], max_new: int, priority: int, reuse: bool, share: Share) -> None:
        self.engine.scheduler.add(self.engine.new(prompt, max_new, priority, reuse, share))

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()
            self.engine.check_blocks()

    @rule(chunk=st.sampled_from([None, 1, 4, 100]))
    def move_chunk_cap(self, chunk: int | None) -> None:
        self.engine.scheduler.max_prefill_chunk = chunk

    @rule(target_ms=st.sampled_from([None, 5.0, 6.5, 20.0]), times=st.sampled_from([PROMPTS_TAKE_LONG, ROWS_TAKE_LONG]))
    def keep_pace(self, target_ms: float | None, times: StepTimes) -> None:
        self.engine.scheduler.pace = None if target_ms is None else Pacer(StepLearner(times), target_ms)

    @precondition(lambda self: hasattr(self, "engine") and self.engine.sequences)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.engine.sequences))
        self.engine.scheduler.finish(sequence)
        self.engine.scheduler.finish(sequence)

    @rule(prompt=prompts, max_new=st.integers(1, 15), priority=st.integers(0, 2), share=shares)
    def receive(self, prompt: list[int], max_new: int, priority: int, share: Share) -> None:
        sequence = self.engine.new(prompt, max_new, priority, share=share)
        first, names = self.engine.scheduler.receive(sequence)
        missing, reach = self.engine.missing(sequence), self.engine.reach
        last = len(prompt) // self.engine.block_size
        assert names == [self.engine.name_of(sequence, at, group, len(prompt)) for at, group in missing]
        assert list(reach.wanted(0, last, last))[first:] == [it for it in missing if it[0] < last]
        for group, table in enumerate(sequence.tables):
            begin = reach.first_block(group, sequence.num_computed // self.engine.block_size) * self.engine.block_size
            found = [self.engine.kv[self.engine.slot(table, p)] for p in range(begin, sequence.num_computed)]
            assert found == chain(prompt)[begin : sequence.num_computed], "what is findable is there already"

    @precondition(lambda self: self.some(SequenceState.RECEIVING))
    @rule(data=st.data(), num_blocks=st.integers(0, 10))
    def reserve(self, data: st.DataObject, num_blocks: int) -> None:
        sequence = self.pick(data, SequenceState.RECEIVING)
        granted = self.engine.scheduler.reserve(sequence, num_blocks)
        assert len(granted) <= num_blocks
        places = [(at, group) for at, group in self.engine.missing(sequence) if len(sequence.tables[group]) > at]
        assert places == self.engine.missing(sequence)[: len(places)]
        end = [sequence.tables[group][at] for at, group in places]
        assert end[len(end) - len(granted) :] == granted

    @precondition(lambda self: self.some(SequenceState.RECEIVING))
    @rule(data=st.data(), missing=st.integers(0, 30), seeded=st.booleans())
    def admit(self, data: st.DataObject, missing: int, seeded: bool) -> None:
        sequence = self.pick(data, SequenceState.RECEIVING)
        granted = sum(len(sequence.tables[group]) > at for at, group in self.engine.missing(sequence))
        num_good = max(0, granted - missing)
        self.engine.import_kv(sequence, num_good)
        token_ids = [chain(sequence.token_ids)[-1] % VOCAB] if seeded else []
        self.engine.scheduler.admit(sequence, num_good, token_ids)
        if seeded and self.engine.ended(sequence):
            self.engine.scheduler.finish(sequence)
            self.engine.completed.append(sequence)

    @precondition(lambda self: self.some(SequenceState.RUNNING))
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        self.engine.scheduler.hold(self.pick(data, SequenceState.RUNNING))

    @precondition(lambda self: self.some(SequenceState.HELD))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.engine.scheduler.finish(self.pick(data, SequenceState.HELD))

    @precondition(lambda self: self.some(SequenceState.RUNNING) or self.some(SequenceState.HELD))
    @rule(data=st.data(), first=st.integers(0, 6))
    def publish(self, data: st.DataObject, first: int) -> None:
        states = (SequenceState.RUNNING, SequenceState.HELD)
        prompts_alone = [
            sequence
            for sequence in self.engine.sequences
            if sequence.state in states and (not sequence.num_output_tokens or self.is_at_its_first_token(sequence))
        ]
        if prompts_alone:  # a block that the exporter reads is needed at the prompt's end, so no window has passed it
            self.engine.publish(data.draw(st.sampled_from(prompts_alone)), first)

    @staticmethod
    def is_at_its_first_token(sequence: Sequence) -> bool:
        """Whether it is held where a prefill leg holds it, so that its tail is whole and nobody writes there."""
        is_held = sequence.state is SequenceState.HELD and not sequence.num_in_flight
        return is_held and sequence.num_computed == sequence.num_prompt_tokens == len(sequence.token_ids) - 1

    @precondition(lambda self: hasattr(self, "engine") and self.engine.published)
    @rule()
    def let_go(self) -> None:
        self.engine.let_go()

    @rule()
    def lose_the_launched_steps(self) -> None:
        touched = self.engine.scheduler.discard()
        assert set(touched) == {s for launched in self.engine.launched for s in launched.plan.sequences}
        self.engine.launched.clear()

    @rule()
    def forget_prefixes(self) -> None:
        self.engine.cache.clear()

    @invariant()
    def everything_is_counted(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check_blocks()
            self.engine.check_launched()
            self.engine.check_queues()
            self.engine.check_cache()

    def teardown(self) -> None:
        """Let everything run out, in a bounded number of steps, and compare with the sequences alone."""
        if not hasattr(self, "engine"):
            return
        engine = self.engine
        for sequence in [*engine.scheduler.held]:
            engine.scheduler.finish(sequence)
        for sequence in [*engine.scheduler.receiving]:
            engine.scheduler.admit(sequence, 0)
        left = [s for s in engine.sequences if s.state is not SequenceState.FINISHED]
        engine.let_go()
        bound = 10 + 3 * sum(s.max_len for s in left)
        while engine.scheduler.has_work:
            engine.step()
            bound -= 1
            assert bound > 0, "no end in sight"
        assert all(s in engine.completed for s in left)
        engine.check_completed()
        engine.check_empty()


SchedulerMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None, derandomize=True)
TestAnyOrderOfEvents = SchedulerMachine.TestCase


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    drawn=configs(),
    requests=st.lists(st.tuples(prompts, st.integers(1, 16), st.integers(0, 2), shares), min_size=1, max_size=12),
)
def test_tokens_are_those_of_each_sequence_alone(
    drawn: Drawn, requests: list[tuple[list[int], int, int, Share]]
) -> None:
    engine = FakeEngine(*drawn)
    for prompt, max_new, priority, share in requests:
        engine.scheduler.add(engine.new(prompt, max_new, priority, share=share))
    bound = 10 + 3 * sum(s.max_len for s in engine.sequences)
    while engine.scheduler.has_work:
        engine.step()
        engine.check_blocks()
        engine.check_launched()
        engine.check_queues()
        bound -= 1
        assert bound > 0, "no end in sight"
    assert len(engine.completed) == len(requests)
    engine.check_completed()
    engine.check_empty()


@pytest.mark.parametrize("behind", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_nobody_waits_longer_than_the_work_before_it(seed: int, behind: int) -> None:
    """Under arrivals without end, with aborts: a request ends within the steps of what ranks before it.

    The bound counts the length of every request that ranks before it or was running when it came; what ranks after
    adds nothing, however much of it arrives.
    """
    rng = random.Random(seed)
    config = SchedulerConfig(
        max_num_seqs=4, max_num_batched_tokens=12, max_model_len=44, block_size=4, max_num_waiting=100_000
    )
    engine = FakeEngine(config, 17, behind)
    bounds: dict[Sequence, int] = {}
    for _ in range(1500):
        if rng.random() < 0.35:
            prompt = [*([1, 2, 3, 4, 5, 6] * 4)[: rng.randrange(20)], rng.randrange(8, 12)]
            sequence = engine.new(prompt, rng.randrange(1, 20), rng.choice([0, 0, 0, 0, 1, 2]))
            engine.scheduler.add(sequence)
            before = [s for s in engine.scheduler.waiting if s.rank <= sequence.rank]
            if sequence.priority == 0:  # nothing that comes later ranks before it
                work = sum(s.max_len for s in [*before, *engine.scheduler.running])
                bounds[sequence] = engine.num_steps + work + 10
        if rng.random() < 0.05 and engine.sequences:
            engine.scheduler.finish(rng.choice(engine.sequences))
        engine.step()
        engine.check_blocks()
        for sequence in [s for s in bounds if s.state is SequenceState.FINISHED]:
            assert engine.num_steps <= bounds.pop(sequence), f"{sequence} was overtaken"
        for sequence, bound in bounds.items():
            assert engine.num_steps <= bound, f"{sequence} starves"
    engine.check_completed()
    assert len(engine.completed) > 50
    assert engine.scheduler.num_preemptions > 0
