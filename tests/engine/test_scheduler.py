"""What one plan takes, what it leaves, and who goes first. Whole runs are in test_scheduler_properties."""

from __future__ import annotations

from typing import Any

import pytest

from baton.engine.block_pool import BlockPool
from baton.engine.prefix_cache import PrefixCache
from baton.engine.scheduler import Scheduler, SchedulerConfig
from baton.engine.sequence import Sequence, SequenceState
from baton.engine.step_plan import StepPlan
from baton.errors import ConfigError, ContextTooLong, QueueFull
from baton.prompt import Prompt
from baton.protocol import SamplingParams
from baton.step_learning import StepLearner
from baton.step_times import StepTimes
from baton.worker.pacer import Pacer


def make(num_blocks: int = 100, **changes: Any) -> Scheduler:
    """Make a scheduler over so many usable blocks of 4 tokens."""
    settings: dict[str, Any] = {"max_num_seqs": 4, "max_num_batched_tokens": 16, "max_model_len": 400, "block_size": 4}
    return Scheduler(SchedulerConfig(**(settings | changes)), BlockPool(num_blocks + 1))


def sequence(name: str, prompt: int | list[int], max_new: int = 20, **changes: Any) -> Sequence:
    """Make a sequence; a number stands for a prompt of that length that is like no other name's."""
    token_ids = [ord(name[0]) * 1000 + i for i in range(prompt)] if isinstance(prompt, int) else prompt
    return Sequence(name, Prompt(token_ids), SamplingParams(), max_len=len(token_ids) + max_new, **changes)


def planned(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.plan()
    assert plan is not None
    return plan


def rows(plan: StepPlan | None) -> dict[str, tuple[int, int]]:
    """Give (start, number of new tokens) of each row."""
    assert plan is not None
    return {
        s.sequence_id: (start, count) for s, start, count in zip(plan.sequences, plan.starts, plan.num_new, strict=True)
    }


def step(scheduler: Scheduler, token_id: int = 5) -> dict[str, tuple[int, int]]:
    plan = planned(scheduler)
    scheduler.commit(plan, [[token_id]] * sum(plan.num_samples))
    return rows(plan)


def run_until_computed(scheduler: Scheduler, *sequences: Sequence) -> None:
    for s in sequences:
        scheduler.add(s)
    while any(s.num_output_tokens == 0 for s in sequences):
        step(scheduler)


# -- the budget -------------------------------------------------------------------------------------------


def test_a_long_prompt_is_computed_in_chunks_and_sampled_at_its_end() -> None:
    scheduler = make()
    a = sequence("a", 40)
    scheduler.add(a)
    for start, count, samples in [(0, 16, 0), (16, 16, 0), (32, 8, 1)]:
        plan = planned(scheduler)
        assert (plan.starts, plan.num_new, plan.num_samples) == ([start], [count], [samples])
        scheduler.commit(plan, [[5]] * samples)
    assert a.token_ids[-1] == 5
    assert step(scheduler) == {"a": (40, 1)}


def test_decodes_come_first_and_prompts_fill_what_is_left() -> None:
    scheduler = make()
    a, b = sequence("a", 3), sequence("b", 3)
    run_until_computed(scheduler, a, b)
    scheduler.add(sequence("c", 20))
    plan = planned(scheduler)
    assert rows(plan) == {"a": (3, 1), "b": (3, 1), "c": (0, 14)}
    assert (plan.num_tokens, plan.num_decodes) == (16, 2)
    assert plan.num_samples == [1, 1, 0]


def test_a_chunk_of_one_token_stands_among_the_decodes() -> None:
    scheduler = make()
    run_until_computed(scheduler, sequence("a", 3))
    scheduler.add(sequence("b", 14))
    scheduler.add(sequence("c", 9))
    plan = planned(scheduler)
    assert [s.sequence_id for s in plan.sequences] == ["a", "c", "b"]
    assert (plan.num_new, plan.num_decodes) == ([1, 1, 14], 2)
    assert plan.num_samples == [1, 0, 1]


def test_a_prompt_begun_goes_on_before_a_new_one_starts() -> None:
    scheduler = make()
    scheduler.add(sequence("a", 20))
    scheduler.add(sequence("b", 20))
    assert step(scheduler) == {"a": (0, 16)}
    assert step(scheduler) == {"a": (16, 4), "b": (0, 12)}
    assert step(scheduler) == {"a": (20, 1), "b": (12, 8)}


def test_prefill_beside_decodes_is_capped_and_alone_it_is_not() -> None:
    scheduler = make()
    scheduler.max_prefill_chunk = 6
    scheduler.add(sequence("a", 20))
    assert step(scheduler) == {"a": (0, 16)}
    assert step(scheduler) == {"a": (16, 4)}
    scheduler.add(sequence("b", 20))
    assert step(scheduler) == {"a": (20, 1), "b": (0, 6)}
    scheduler.max_prefill_chunk = 9
    assert step(scheduler) == {"a": (21, 1), "b": (6, 9)}


def paced(target_ms: float, **changes: Any) -> Scheduler:
    """Make a scheduler for a device that takes 5 ms for a step and 0.1 ms for each token of a prompt, after one that decodes."""
    settings = {"max_num_batched_tokens": 1024, "max_model_len": 4000, "num_blocks": 2000}
    scheduler = make(**(settings | changes))
    scheduler.pace = Pacer(StepLearner(StepTimes(5e-3, 0.0, 0.0, 0.0, 1e-4, 0.0, 0.0)), target_ms)
    run_until_computed(scheduler, sequence("a", 3, 3000))
    return scheduler


def test_chunks_beside_decodes_are_as_long_as_the_target_leaves_time_for() -> None:
    scheduler = paced(20.0)
    scheduler.add(sequence("b", 500))
    assert step(scheduler) == {"a": (3, 1), "b": (0, 95)}  # 20 ms less 5 and the margins; 96 tokens are a whole shape
    scheduler.pace = Pacer(StepLearner(StepTimes(5e-3, 0.0, 0.0, 0.0, 1e-3, 0.0, 0.0)), 0.0)
    assert step(scheduler)["b"] == (95, 405)


def test_a_step_with_decodes_is_no_longer_than_one_launch_serves() -> None:
    scheduler = paced(200.0)
    scheduler.pace = Pacer(StepLearner(StepTimes(5e-3, 0.0, 0.0, 0.0, 1e-4, 0.0, 0.0)), 200.0, most_mixed=256)
    scheduler.add(sequence("b", 900))
    assert step(scheduler) == {"a": (3, 1), "b": (0, 255)}


def test_prompts_alone_are_computed_in_chunks_that_cost_no_throughput() -> None:
    scheduler = paced(20.0)
    scheduler.finish(scheduler.running[0])
    scheduler.add(sequence("b", 2000))
    assert step(scheduler) == {"b": (0, 512)}


def test_where_the_target_leaves_no_time_one_step_in_a_hundred_has_a_chunk() -> None:
    scheduler = paced(5.0)
    scheduler.add(sequence("b", 300))
    chunks = [step(scheduler).get("b", (0, 0))[1] for _ in range(320)]
    assert [at for at, num in enumerate(chunks) if num > 1][:2] == [100, 201]
    assert sum(chunks) > 300


def test_no_more_decode_together_than_the_target_has_time_for() -> None:
    scheduler = paced(20.0, max_num_seqs=8)
    times = StepTimes(5e-3, 5e-3, 0.0, 0.0, 1e-6, 0.0, 0.0)  # each row takes as long as the weights
    scheduler.pace = Pacer(StepLearner(times), 20.0)
    others = [sequence(name, 3, 300) for name in "bcdef"]
    for each in others:
        scheduler.add(each)
    for _ in range(5):
        plan = step(scheduler)
    assert set(plan) == {"a", "b"}
    prompt = sequence("p", 3, 1)  # computed for somebody else
    scheduler.add(prompt)
    assert "p" in step(scheduler)
    scheduler.finish(prompt)
    scheduler.finish(others[0])
    assert set(step(scheduler)) == {"a", "c"}


def test_who_has_its_kv_already_passes_a_prompt_for_which_there_is_no_time() -> None:
    scheduler = paced(5.0)
    scheduler.add(sequence("b", 300))
    c = sequence("c", 30)
    scheduler.receive(c)
    scheduler.reserve(c, 10)
    scheduler.admit(c, 7, [77])
    assert set(step(scheduler)) == {"a", "c"}


def test_without_chunks_a_prompt_waits_until_it_fits_the_step() -> None:
    scheduler = make(enable_chunked_prefill=False)
    scheduler.add(sequence("a", 10))
    scheduler.add(sequence("b", 7))
    scheduler.add(sequence("c", 2))
    assert step(scheduler) == {"a": (0, 10)}, "and nobody overtakes"
    assert step(scheduler) == {"a": (10, 1), "b": (0, 7), "c": (0, 2)}


def test_without_chunks_a_prompt_longer_than_any_step_is_chunked_all_the_same() -> None:
    scheduler = make(enable_chunked_prefill=False)
    scheduler.add(sequence("a", 20))
    assert step(scheduler) == {"a": (0, 16)}
    scheduler.add(sequence("b", 13))
    assert step(scheduler) == {"a": (16, 4)}, "and b has to wait"


def test_without_chunks_the_rest_of_a_long_prompt_takes_what_it_gets() -> None:
    scheduler = make(enable_chunked_prefill=False)
    run_until_computed(scheduler, sequence("d", 2), sequence("e", 2))
    scheduler.add(sequence("a", 30))
    assert step(scheduler) == {"d": (2, 1), "e": (2, 1), "a": (0, 14)}
    scheduler.add(sequence("b", 2))
    assert step(scheduler) == {"d": (3, 1), "e": (3, 1), "a": (14, 14)}
    assert step(scheduler) == {"d": (4, 1), "e": (4, 1), "a": (28, 2), "b": (0, 2)}


def test_there_are_no_more_rows_than_seats() -> None:
    scheduler = make(max_num_seqs=2)
    for name in "abc":
        scheduler.add(sequence(name, 2))
    assert set(step(scheduler)) == {"a", "b"}
    scheduler.finish(scheduler.running[0])
    assert set(step(scheduler)) == {"b", "c"}


def test_a_budget_below_the_seats_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_num_batched_tokens=3"):
        make(max_num_batched_tokens=3)


def test_nothing_to_do_is_no_plan() -> None:
    scheduler = make()
    assert scheduler.plan() is None
    assert not scheduler.has_work


# -- order ------------------------------------------------------------------------------------------------


def test_the_lower_priority_number_goes_first_and_then_the_earlier_arrival() -> None:
    scheduler = make(max_num_seqs=1, max_num_batched_tokens=4)
    for name, priority in [("a", 1), ("b", 0), ("c", 1), ("d", 0)]:
        scheduler.add(sequence(name, 4, max_new=1, priority=priority))
    order = []
    while scheduler.has_work:
        order += step(scheduler)
        scheduler.finish(scheduler.running[0])
    assert order == ["b", "d", "a", "c"]


def test_equal_arrivals_from_a_caller_are_told_apart() -> None:
    scheduler = make()
    twins = [sequence(name, 4, arrival=7) for name in "abc"]
    for s in twins:
        scheduler.add(s)
    scheduler.finish(twins[1])
    assert scheduler.waiting == [twins[0], twins[2]]


def test_a_full_queue_refuses() -> None:
    scheduler = make(max_num_waiting=1)
    scheduler.add(sequence("a", 4))
    with pytest.raises(QueueFull, match="1 requests are waiting"):
        scheduler.add(refused := sequence("b", 4))
    scheduler.finish(refused)
    assert [s.sequence_id for s in scheduler.waiting] == ["a"]


def test_what_can_never_fit_the_pool_is_refused_with_both_numbers() -> None:
    scheduler = make(num_blocks=5)
    scheduler.add(sequence("a", 20, max_new=1))  # the last token needs no KV
    with pytest.raises(ContextTooLong, match="need 6 KV blocks, and the cache has 5"):
        scheduler.add(sequence("b", 20, max_new=2))


# -- prefixes ---------------------------------------------------------------------------------------------


def test_a_known_beginning_is_not_computed_again() -> None:
    scheduler = make()
    a = sequence("a", [*range(8), 50])
    run_until_computed(scheduler, a)
    b = sequence("b", [*range(8), 60, 61])
    scheduler.add(b)
    assert step(scheduler)["b"] == (8, 2)
    assert b.tables[0][:2] == a.tables[0][:2]
    assert (a.num_cached, b.num_cached) == (0, 8)
    assert scheduler.cache is not None
    assert (scheduler.cache.num_queries, scheduler.cache.num_hits) == (19, 8)


def test_a_prompt_known_to_its_end_still_has_a_token_to_compute() -> None:
    scheduler = make()
    run_until_computed(scheduler, sequence("a", list(range(8))))
    b = sequence("b", list(range(8)))
    scheduler.add(b)
    assert step(scheduler)["b"] == (4, 4), "whole blocks only"
    assert b.num_output_tokens == 1


def test_output_is_shared_as_well_as_prompts() -> None:
    scheduler = make()
    a = sequence("a", list(range(6)))
    scheduler.add(a)
    for token_id in (6, 7, 8):
        step(scheduler, token_id)
    b = sequence("b", list(range(9)))
    scheduler.add(b)
    assert step(scheduler)["b"] == (8, 1)


def test_the_cache_that_is_given_is_the_one_that_is_used() -> None:
    pool = BlockPool(20)
    cache = PrefixCache(pool)
    config = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=16, max_model_len=40, block_size=4)
    scheduler = Scheduler(config, pool, cache)
    run_until_computed(scheduler, sequence("a", 9))
    assert scheduler.cache is cache
    assert len(cache) == 2


def test_another_root_shares_nothing() -> None:
    scheduler = make()
    run_until_computed(scheduler, sequence("a", list(range(9)), root=b"alice"))
    scheduler.add(sequence("b", list(range(9)), root=b"bob"))
    assert step(scheduler)["b"] == (0, 9)


def test_a_sequence_that_wants_every_position_computes_them_and_shares_them_with_others() -> None:
    scheduler = make()
    run_until_computed(scheduler, sequence("a", list(range(9))))
    b = sequence("b", list(range(100, 109)), reuse_prefix=False)
    c = sequence("c", list(range(9)), reuse_prefix=False)
    scheduler.add(c)
    assert step(scheduler)["c"] == (0, 9)
    run_until_computed(scheduler, b)
    scheduler.add(sequence("d", list(range(100, 109))))
    assert step(scheduler)["d"] == (8, 1)


def test_prefixes_are_not_shared_when_that_is_off() -> None:
    scheduler = make(enable_prefix_caching=False)
    run_until_computed(scheduler, sequence("a", list(range(9))))
    scheduler.add(sequence("b", list(range(9))))
    assert step(scheduler)["b"] == (0, 9)


def test_equal_prompts_that_come_together_are_computed_once() -> None:
    scheduler = make(max_num_batched_tokens=64)
    for name in "abc":
        scheduler.add(sequence(name, list(range(17))))
    assert step(scheduler) == {"a": (0, 17)}
    assert step(scheduler) == {"a": (17, 1), "b": (16, 1), "c": (16, 1)}


def test_one_who_waits_for_a_prefix_is_passed_by_others() -> None:
    scheduler = make(max_num_batched_tokens=64)
    scheduler.add(sequence("a", list(range(17))))
    scheduler.add(sequence("b", list(range(17))))
    scheduler.add(sequence("c", 17))
    assert step(scheduler) == {"a": (0, 17), "c": (0, 17)}


def test_nobody_waits_for_the_smaller_part_of_its_prompt() -> None:
    scheduler = make(max_num_batched_tokens=64)
    scheduler.add(sequence("a", list(range(8))))
    scheduler.add(sequence("b", [*range(8), *range(50, 70)]))
    assert step(scheduler) == {"a": (0, 8), "b": (0, 28)}


def test_a_prefix_on_its_way_is_waited_for_over_launched_steps() -> None:
    scheduler = make(max_num_batched_tokens=64)
    scheduler.add(sequence("a", list(range(17))))
    scheduler.add(sequence("b", list(range(17))))
    first = planned(scheduler)
    second = planned(scheduler)
    assert rows(second) == {"a": (17, 1)}
    scheduler.commit(first, [[5]])
    assert rows(scheduler.plan()) == {"a": (18, 1), "b": (16, 1)}


# -- one step behind --------------------------------------------------------------------------------------


def test_the_next_step_is_planned_before_the_last_ones_token_is_known() -> None:
    scheduler = make()
    a = sequence("a", 3)
    scheduler.add(a)
    first = planned(scheduler)
    second = planned(scheduler)
    assert rows(second) == {"a": (3, 1)}
    assert (a.num_tokens, a.num_pending, a.num_in_flight) == (5, 2, 2)
    scheduler.commit(first, [[7]])
    scheduler.commit(second, [[8]])
    assert a.token_ids[-2:] == [7, 8]
    assert (a.num_tokens, a.num_pending, a.num_in_flight) == (5, 0, 0)


def test_nothing_is_planned_past_the_longest_length() -> None:
    scheduler = make()
    a = sequence("a", 3, max_new=2)
    scheduler.add(a)
    plans = [planned(scheduler), planned(scheduler)]
    assert scheduler.plan() is None
    for plan in plans:
        scheduler.commit(plan, [[5]])
    assert a.is_full


def test_what_finishes_under_a_launched_step_keeps_its_blocks_until_that_has_ended() -> None:
    scheduler = make(enable_prefix_caching=False)
    a = sequence("a", 3)
    scheduler.add(a)
    first, second = planned(scheduler), planned(scheduler)
    scheduler.commit(first, [[5]])
    scheduler.finish(a)
    assert len(scheduler.running) == 0
    assert scheduler.pool.num_held == 1
    scheduler.commit(second, [[6]])
    assert a.token_ids[-1] == 5, "the late token is ignored"
    assert scheduler.pool.num_held == 0
    assert not scheduler.has_work


def test_plans_are_committed_in_their_order() -> None:
    scheduler = make()
    scheduler.add(sequence("a", 3))
    planned(scheduler)
    second = planned(scheduler)
    with pytest.raises(AssertionError, match="in their order"):
        scheduler.commit(second, [[5]])


# -- too few blocks ---------------------------------------------------------------------------------------


def fill(num_steps: int = 5) -> tuple[Scheduler, Sequence, Sequence]:
    """Make two sequences that fill the pool, and after 5 steps both need a block for their next token."""
    scheduler = make(num_blocks=4)
    a, b = sequence("a", 3, max_new=10), sequence("b", 3, max_new=10)
    run_until_computed(scheduler, a, b)
    for _ in range(num_steps):
        step(scheduler)
    assert scheduler.pool.num_available == 0
    return scheduler, a, b


def test_the_last_by_rank_gives_its_blocks_to_the_first() -> None:
    scheduler, a, b = fill()
    tokens = list(b.token_ids)
    plan = planned(scheduler)
    assert rows(plan) == {"a": (8, 1)}
    assert plan.preempted == [b]
    assert (b.state, b.num_computed, b.tables, b.token_ids) == (SequenceState.WAITING, 0, [], tokens)
    assert (b.num_preemptions, scheduler.num_preemptions) == (1, 1)
    assert a.num_preemptions == 0


def test_priority_decides_who_loses_blocks() -> None:
    scheduler = make(num_blocks=4)
    a, b = sequence("a", 3, max_new=10, priority=1), sequence("b", 3, max_new=10)
    run_until_computed(scheduler, a, b)
    for _ in range(5):
        step(scheduler)
    assert planned(scheduler).preempted == [a]


def test_the_preempted_goes_on_before_later_ones_and_with_all_its_tokens() -> None:
    scheduler, a, b = fill()
    scheduler.add(sequence("c", 3, max_new=1))
    step(scheduler)
    assert scheduler.waiting[0] is b
    num_tokens = b.num_tokens
    scheduler.finish(a)
    start, count = step(scheduler)["b"]
    assert start + count == num_tokens
    assert b.num_tokens == num_tokens + 1
    assert b.num_cached == 0, "usage tells of the first admission"


def test_with_a_step_in_flight_preemption_waits_for_it() -> None:
    scheduler, _a, b = fill(num_steps=4)
    in_flight = planned(scheduler)
    assert scheduler.plan() is None
    scheduler.commit(in_flight, [[5], [5]])
    plan = planned(scheduler)
    assert plan.preempted == [b]
    assert rows(plan) == {"a": (8, 1)}


def test_one_that_waits_for_a_preemption_is_not_kept_waiting_by_those_that_still_have_room() -> None:
    scheduler = make(num_blocks=4)
    a, b = sequence("a", 3, max_new=10), sequence("b", 1, max_new=10)
    run_until_computed(scheduler, a, b)
    for _ in range(4):
        step(scheduler)
    plans = [planned(scheduler), planned(scheduler)]
    assert rows(plans[1]) == {"b": (6, 1)}
    for plan in plans:
        assert scheduler.plan() is None, "though b could go on"
        scheduler.commit(plan, [[5]] * sum(plan.num_samples))
    plan = planned(scheduler)
    assert plan.preempted == [b]
    assert rows(plan) == {"a": (8, 1)}


def test_a_preemption_in_a_plan_without_rows_is_told_by_the_next() -> None:
    scheduler = make(num_blocks=4)
    held, a = sequence("h", 7, max_new=1), sequence("a", 3, max_new=10)
    run_until_computed(scheduler, held, a)
    scheduler.hold(held)
    while scheduler.plan() is not None:
        scheduler.commit(scheduler._in_flight[0], [[5]])
    assert a.state is SequenceState.WAITING
    assert scheduler.plan() is None
    scheduler.finish(held)
    plan = planned(scheduler)
    assert plan.preempted == [a]
    assert plan.sequences == [a]


def test_admission_leaves_a_block_for_each_running_sequence() -> None:
    scheduler = make(num_blocks=6)
    a = sequence("a", 10, max_new=4)
    run_until_computed(scheduler, a)
    scheduler.add(sequence("b", 12, max_new=4))
    assert scheduler.pool.num_available == 3
    assert set(step(scheduler)) == {"a"}, "3 are needed, and 1 is kept for a"
    scheduler.finish(a)
    assert set(step(scheduler)) == {"b"}


def test_a_sequence_is_admitted_only_if_all_of_it_fits() -> None:
    scheduler = make(num_blocks=10)
    a = sequence("a", 10, max_new=4)
    run_until_computed(scheduler, a)
    scheduler.add(sequence("b", 28, max_new=4))
    assert set(step(scheduler)) == {"a"}, "its first chunk would fit"
    scheduler.finish(a)
    assert step(scheduler) == {"b": (0, 16)}


# -- ways out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [state for state in SequenceState if state is not SequenceState.NEW])
def test_finishing_gives_everything_back_from_any_state(state: SequenceState) -> None:
    scheduler = make()
    a = sequence("a", 9)
    if state is SequenceState.RECEIVING:
        scheduler.receive(a)
        scheduler.reserve(a, 2)
    else:
        scheduler.add(a)
    if state in (SequenceState.RUNNING, SequenceState.HELD):
        step(scheduler)
    if state is SequenceState.HELD:
        scheduler.hold(a)
    if state is not SequenceState.FINISHED:
        assert a.state is state
    scheduler.finish(a)
    scheduler.finish(a)
    assert a.state is SequenceState.FINISHED
    assert scheduler.pool.num_held == 0
    assert not scheduler.has_work
    assert not scheduler.held | scheduler.receiving


def test_a_held_sequence_keeps_its_blocks_and_stays_out_of_plans() -> None:
    scheduler = make()
    a = sequence("a", 9, max_new=1)
    run_until_computed(scheduler, a)
    scheduler.hold(a)
    assert scheduler.plan() is None
    assert scheduler.pool.num_held == len(a.tables[0]) == 3


def test_discarding_a_failed_step_sends_its_sequences_back_to_the_queue() -> None:
    scheduler = make()
    a, b = sequence("a", 3), sequence("b", 3)
    run_until_computed(scheduler, a, b)
    planned(scheduler)
    planned(scheduler)
    scheduler.finish(b)
    assert scheduler.discard() == [a, b]
    assert scheduler.pool.num_held == 0
    assert a.num_in_flight == b.num_in_flight == 0
    assert (a.state, a.num_tokens, a.num_pending) == (SequenceState.WAITING, 4, 0)
    plan = planned(scheduler)
    assert plan.preempted == [a], "whoever copied its block table has to know"
    assert rows(plan) == {"a": (0, 4)}


# -- KV from elsewhere ------------------------------------------------------------------------------------


def test_imported_kv_is_not_computed_again() -> None:
    scheduler = make()
    a = sequence("a", 10)
    scheduler.receive(a)
    assert scheduler.plan() is None
    assert len(scheduler.reserve(a, 2)) == 2
    assert len(scheduler.reserve(a, 5)) == 1, "no more than its prompt touches"
    assert scheduler.admit(a, 3, [77]) == 10
    plan = planned(scheduler)
    assert rows(plan) == {"a": (10, 1)}
    assert plan.num_decodes == 1, "it joins as a row like all others"
    scheduler.commit(plan, [[5]])
    scheduler.add(sequence("b", a.token_ids[:9]))
    assert step(scheduler)["b"] == (8, 1), "what was verified and admitted can be found"


def test_a_tail_without_its_token_has_its_last_position_computed_again() -> None:
    scheduler = make()
    a = sequence("a", 10)
    scheduler.receive(a)
    scheduler.reserve(a, 3)
    assert scheduler.admit(a, 3) == 10
    assert step(scheduler) == {"a": (9, 1)}


def test_a_tail_is_named_by_its_tokens_their_number_and_what_is_before_them() -> None:
    names = [make().receive(sequence("t", prompt))[1] for prompt in ([1] * 4, [1] * 5, [1] * 6, [1] * 7, [2] + [1] * 4)]
    assert [len(each) for each in names] == [1, 2, 2, 2, 2]
    assert len({name for each in names for name in each}) == 1 + 3 + 2, "only the full block of ones is shared"


def test_a_tail_is_never_found_in_the_prefix_cache() -> None:
    scheduler = make()
    a = sequence("a", 10)
    _, names = scheduler.receive(a)
    scheduler.reserve(a, 3)
    scheduler.admit(a, 3, [77])
    step(scheduler)
    assert scheduler.cache is not None
    assert [name in scheduler.cache for name in names] == [True, True, False]


def test_a_transfer_that_stops_halfway_is_completed_here() -> None:
    scheduler = make()
    a = sequence("a", 10)
    scheduler.receive(a)
    scheduler.reserve(a, 2)
    scheduler.admit(a, 2)
    assert step(scheduler) == {"a": (8, 2)}


def test_without_a_token_from_elsewhere_the_last_position_is_computed_in_a_block_of_its_own() -> None:
    scheduler = make()
    a = sequence("a", 8)
    scheduler.receive(a)
    scheduler.reserve(a, 2)
    scheduler.admit(a, 2)
    assert a.num_indexed == 1, "nobody may find a block that is written again"
    assert step(scheduler) == {"a": (7, 1)}


def test_only_the_missing_blocks_are_to_be_received() -> None:
    scheduler = make()
    run_until_computed(scheduler, sequence("a", list(range(9))))
    b = sequence("b", [*range(8), 50, 51, 52, 53, 54])
    assert scheduler.receive(b) == (2, [*b.block_hashes[2:], b.hash_tail(13, 4)])
    assert (b.num_computed, b.num_cached) == (8, 8)
    assert len(scheduler.reserve(b, 5)) == 2


def test_a_grant_leaves_room_for_those_who_run_and_for_an_older_one_who_waits() -> None:
    scheduler = make(num_blocks=10, max_num_seqs=1)
    run_until_computed(scheduler, sequence("a", 4, max_new=4))
    scheduler.add(sequence("b", 8, max_new=4))
    c = sequence("c", 36, max_new=4)
    scheduler.receive(c)
    granted = scheduler.reserve(c, 9)
    assert len(granted) == 9 - 1 - 2


def test_imported_blocks_of_one_who_waits_are_taken_back_before_an_older_one_is_stuck() -> None:
    scheduler = make(num_blocks=4)
    b = sequence("b", 12, max_new=4, arrival=2)
    scheduler.receive(b)
    scheduler.reserve(b, 3)
    scheduler.admit(b, 3, [77])
    scheduler.add(sequence("a", 12, max_new=4, arrival=1))
    plan = planned(scheduler)
    assert plan.preempted == [b]
    assert rows(plan) == {"a": (0, 12)}
    assert b.token_ids[-1] == 77


def test_imported_blocks_of_one_who_waits_are_taken_before_those_of_an_older_one_who_runs() -> None:
    scheduler = make(num_blocks=4, max_num_seqs=1)
    a = sequence("a", 3, max_new=10)
    run_until_computed(scheduler, a)
    b = sequence("b", 8, max_new=4)
    scheduler.receive(b)
    scheduler.reserve(b, 2)
    scheduler.admit(b, 2, [77])
    for _ in range(5):
        step(scheduler)
    plan = planned(scheduler)
    assert plan.preempted == [b]
    assert rows(plan) == {"a": (8, 1)}
    assert b.num_slots == 0


def test_when_the_last_one_running_gives_way_an_older_one_is_admitted_at_once() -> None:
    scheduler = make(num_blocks=4, max_num_seqs=1)
    b = sequence("b", 3, max_new=10, priority=1)
    run_until_computed(scheduler, b)
    a = sequence("a", 8, max_new=4)
    scheduler.receive(a)
    assert len(scheduler.reserve(a, 2)) == 2
    scheduler.admit(a, 2)
    for _ in range(5):
        step(scheduler)
    b_and_a_fill_the_pool = (len(b.tables[0]), len(a.tables[0]), scheduler.pool.num_available)
    assert b_and_a_fill_the_pool == (2, 2, 0)
    plan = planned(scheduler)
    assert plan.preempted == [b]
    assert rows(plan) == {"a": (7, 1)}


# -- several samples a row --------------------------------------------------------------------------------


def verify_guesses(scheduler: Scheduler, s: Sequence, num_guessed: int) -> StepPlan:
    """Plan one row that computes a sequence's last token and guesses behind it."""
    plan = StepPlan()
    assert scheduler.blocks.grow(s, s.num_computed + 1 + num_guessed) == s.num_computed + 1 + num_guessed
    plan.add(s, 1 + num_guessed, 1 + num_guessed)
    scheduler._in_flight.append(plan)
    return plan


def test_wrong_guesses_are_taken_back_and_their_blocks_stay() -> None:
    scheduler = make(block_size=4)
    a = sequence("a", 7)
    run_until_computed(scheduler, a)
    plan = verify_guesses(scheduler, a, 6)
    assert (a.num_computed, len(a.tables[0])) == (14, 4)
    assert scheduler.plan() is None, "how many of them are right is not known"
    scheduler.commit(plan, [[11, 12]])
    assert a.token_ids[-3:] == [5, 11, 12]
    assert (a.num_computed, a.num_indexed, a.num_pending, len(a.tables[0])) == (9, 2, 0, 4)
    assert step(scheduler) == {"a": (9, 1)}


def test_right_guesses_count_as_computed() -> None:
    scheduler = make(block_size=4)
    a = sequence("a", 7)
    run_until_computed(scheduler, a)
    scheduler.commit(verify_guesses(scheduler, a, 4), [[1, 2, 3, 4, 9]])
    assert (a.num_computed, a.num_indexed, a.num_tokens) == (12, 3, 13)
    assert step(scheduler) == {"a": (12, 1)}
