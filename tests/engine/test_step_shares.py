"""A tenant with hundreds of streams delays another's small request by no more than what that would take alone, twice.

Seconds are counted, not measured: each step takes what `StepTimes` says of it.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.engine.block_pool import BlockPool
from baton.engine.scheduler import Scheduler, SchedulerConfig
from baton.engine.sequence import Sequence
from baton.engine.step_plan import StepPlan
from baton.engine.step_shares import StepShares
from baton.prompt import Prompt
from baton.protocol import SamplingParams, Share
from baton.step_learning import StepLearner
from baton.step_pace import StepPace
from baton.step_times import LLAMA_8B_ON_H100, StepTimes
from baton.worker.pacer import Pacer

DEMO_ON_A_CPU = StepTimes(12e-3, 0.63e-3, 1.7e-7, 1.6e-3, 0.29e-3, 0.18e-3, 6e-10)
"""The demo model's, as learned on one core: a step takes 13 ms with one row and 155 with 224."""
FLOOD, SMALL = Share(b"flood"), Share(b"small")


class Worker:
    """A scheduler whose steps take the time that is predicted for them."""

    def __init__(self, times: StepTimes, target_ms: float | None = None) -> None:
        config = SchedulerConfig(max_num_seqs=256, max_num_batched_tokens=4096, max_model_len=4096)
        self.scheduler = Scheduler(config, BlockPool(40_000))
        self.scheduler.pace = Pacer(StepLearner(times), target_ms)
        self.times = times
        self.now = 0.0
        self.num_asked = 0
        self.plan = StepPlan()

    def ask(self, share: Share, prompt_len: int, max_new: int) -> Sequence:
        first = 10_000 * self.num_asked
        self.num_asked += 1
        prompt = Prompt(range(first, first + prompt_len))
        name = f"{share.tenant.decode()}{self.num_asked}"
        sequence = Sequence(name, prompt, SamplingParams(), max_len=prompt_len + max_new, share=share)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> None:
        plan = self.scheduler.plan()
        assert plan is not None
        self.plan = plan
        num = plan.num_decodes
        self.now += self.times.seconds(num, sum(plan.starts[:num]), plan.num_tokens - num, plan.num_chunk_pairs)
        self.scheduler.commit(plan, [[5] for num in plan.num_samples if num])
        for sequence in plan.sequences:
            if sequence.is_full:
                self.scheduler.finish(sequence)
                if sequence.share == FLOOD:
                    self.ask(FLOOD, sequence.num_prompt_tokens, sequence.max_len - sequence.num_prompt_tokens)

    def served(self, share: Share, prompt_len: int, max_new: int) -> tuple[float, float]:
        """Ask, and return the seconds to the first token and to the end."""
        began, first_s = self.now, 0.0
        sequence = self.ask(share, prompt_len, max_new)
        while not sequence.is_full:
            self.step()
            if not first_s and sequence.num_output_tokens:
                first_s = self.now - began
        return first_s, self.now - began


def flooded(times: StepTimes, target_ms: float | None = None) -> Worker:
    """Have one tenant take all places that it may, with as many requests waiting behind."""
    worker = Worker(times, target_ms)
    for _ in range(420):
        worker.ask(FLOOD, 40, 3000)
    while worker.plan.num_decodes < 224:
        worker.step()
    return worker


@pytest.fixture(scope="module")
def on_a_cpu() -> Worker:
    return flooded(DEMO_ON_A_CPU)


@pytest.mark.parametrize(("prompt_len", "max_new"), [(20, 16), (60, 16), (60, 60), (600, 16), (2000, 8)])
def test_a_small_request_is_delayed_by_no_more_than_it_takes_alone_twice(
    on_a_cpu: Worker, prompt_len: int, max_new: int
) -> None:
    alone_s = Worker(DEMO_ON_A_CPU).served(SMALL, prompt_len, max_new)[1]
    in_flight_s = 0.16  # the step that runs when it comes
    assert on_a_cpu.served(SMALL, prompt_len, max_new)[1] + in_flight_s / 2 - alone_s <= 2 * alone_s


def test_a_flood_goes_on_with_all_of_its_rows_once_it_is_alone_again(on_a_cpu: Worker) -> None:
    on_a_cpu.served(SMALL, 60, 16)
    on_a_cpu.step()
    assert on_a_cpu.plan.num_decodes == 224


def test_the_rows_of_a_flood_take_turns(on_a_cpu: Worker) -> None:
    flood = [each for each in on_a_cpu.scheduler.running if each.share == FLOOD]
    small = on_a_cpu.ask(SMALL, 20, 60)
    on_a_cpu.step()
    before = {each: each.num_output_tokens for each in flood}
    while not small.is_full:
        on_a_cpu.step()
        assert small in on_a_cpu.plan.sequences
    gained = [each.num_output_tokens - before[each] for each in flood]
    assert min(gained) >= 5
    assert max(gained) <= min(gained) + 1


def test_where_a_step_keeps_to_the_target_with_all_rows_it_has_all() -> None:
    worker = flooded(LLAMA_8B_ON_H100)
    small = worker.ask(SMALL, 60, 16)
    while not small.is_full:
        worker.step()
        assert worker.plan.num_decodes >= 224


def test_nobody_is_left_out_where_no_pace_is_kept() -> None:
    worker = flooded(DEMO_ON_A_CPU, target_ms=0.0)
    small = worker.ask(SMALL, 60, 16)
    while not small.is_full:
        worker.step()
        assert worker.plan.num_decodes >= 224


def test_tenants_that_ask_for_the_same_have_all_rows_in_every_step() -> None:
    worker = Worker(DEMO_ON_A_CPU)
    for i in range(200):
        worker.ask((FLOOD, SMALL)[i % 2], 8, 100)
    while worker.plan.num_decodes < 200:
        worker.step()
    for _ in range(20):
        worker.step()
        assert worker.plan.num_decodes == 200


def running(share: Share, num: int, len_: int) -> list[Sequence]:
    """Make sequences that lack one token."""
    made = [Sequence("", Prompt([1] * len_), SamplingParams(), max_len=4000, share=share) for _ in range(num)]
    for sequence in made:
        sequence.num_computed = len_ - 1
    return made


tenants = st.lists(
    st.tuples(st.sampled_from([0.5, 1.0, 4.0, 100.0]), st.integers(1, 12), st.integers(1, 900)), min_size=2, max_size=5
)
step_times = st.builds(
    StepTimes,
    *(st.sampled_from([0.0, 1e-6, 1e-3, 2e-2]) for _ in range(2)),
    st.sampled_from([0.0, 1e-7, 1e-5]),
    *[st.just(0.0)] * 4,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(tenants, step_times)
def test_every_tenant_has_a_row_who_is_due_least_has_all_and_no_row_is_forgotten(
    asked: list[tuple[float, int, int]], times: StepTimes
) -> None:
    shares, pace = StepShares(), StepPace(times, target_s=0.03, slower=1.5)
    groups = [running(Share(b"%d" % i, weight), num, len_) for i, (weight, num, len_) in enumerate(asked)]
    everybody = [sequence for group in groups for sequence in group]
    weights = sum(weight for weight, _, _ in asked)
    dues = [times.seconds(num, num * (len_ - 1)) * weights / weight for weight, num, len_ in asked]
    turns: Counter[Sequence] = Counter()
    for _ in range(60):
        left = shares.left_out(everybody, None, pace)
        taken = [sequence for sequence in everybody if sequence not in left]
        turns.update(taken)
        assert not left & set(groups[dues.index(min(dues))])
        by_tenant = Counter(sequence.share.tenant for sequence in taken)
        assert len(by_tenant) == len(asked)
        seconds = times.seconds(len(taken), sum(sequence.num_computed for sequence in taken))
        if left and max(by_tenant.values()) > 1:
            longest = max(times.row + times.context * (len_ - 1) for _, _, len_ in asked)
            assert seconds <= max(0.03, min(dues)) + len(asked) * longest + 1e-9
    for group in groups:
        assert max(turns[sequence] for sequence in group) - min(turns[sequence] for sequence in group) <= 1
        assert all(turns[sequence] >= 60 // len(group) for sequence in group)
