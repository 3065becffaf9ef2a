"""How long steps take: what is predicted, and how it is learned from steps that were measured."""

import json
import random
from pathlib import Path
from statistics import median

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.step_learning import StepLearner
from baton.step_pace import ANY_NUMBER, StepPace
from baton.step_times import LLAMA_8B_ON_H100, StepTimes

steps = st.tuples(
    st.floats(1e-6, 1e3), st.integers(0, 512), st.integers(0, 10**6), st.integers(0, 8192), st.integers(0, 10**9)
)
all_times = st.builds(StepTimes, *[st.floats(0, 1e-2)] * 7)


def gpu(rows: int, context: int, tokens: int, pairs: float) -> float:
    """A device that reads its weights in 5 ms, in which it could multiply by 227 tokens: no sum of parts."""
    attention = 43e-9 * context + 0.28e-9 * pairs
    return max(5e-3, 22e-6 * (rows + tokens)) + attention + 12e-6 * rows + (0.6e-3 + 3e-6 * tokens if tokens else 7e-4)


def cpu(rows: int, context: int, tokens: int, pairs: float) -> float:
    """One that multiplies for as long for each token, a hundred times as slowly."""
    return 4e-3 + 2e-3 * (rows + tokens) + 1e-7 * context + 1e-8 * pairs


def some_steps(rng: random.Random, num: int) -> list[tuple[int, int, int, int]]:
    """Steps as decode workers do them: mostly decodes, some with a chunk, some with nothing else."""
    made = []
    for at in range(num):
        rows = 0 if at % 40 == 0 else rng.randint(1, 60)
        tokens = rng.choice([512, 1024, 2048]) if not rows else rng.choice([0, 0, 0, 16, 64, 128, 256, 400])
        made.append((rows, rows * rng.randint(500, 3000), tokens, tokens * (rng.choice([0, 512, 1024]) + tokens)))
    return made


def test_an_h100_is_predicted_as_it_was_measured() -> None:
    times = LLAMA_8B_ON_H100
    for rows, ms in ((1, 5.6), (8, 6.6), (32, 7.8), (128, 13.7), (256, 21.4)):
        assert abs(1000 * times.seconds(rows, 1024 * rows) / ms - 1) < 0.08
    for tokens, ms in ((512, 12.8), (2048, 52.3), (8192, 224)):
        assert abs(1000 * times.seconds(tokens=tokens, pairs=tokens**2) / ms - 1) < 0.08
    assert abs(times.prompt_seconds(2048) / 0.0523 - 1) < 0.08
    assert times.efficient_chunk() == 1024


@given(all_times, st.floats(0, 1), st.integers(0, 300), st.integers(0, 8192), st.integers(1, 8192))
def test_the_largest_chunk_that_fits_fits_and_one_token_more_does_not(
    times: StepTimes, seconds: float, rows: int, start: int, most: int
) -> None:
    num = times.most_tokens(seconds, rows, 1000 * rows, start=start, most=most)
    assert 0 <= num <= most
    if num:
        assert times.seconds(rows, 1000 * rows, num, num * (start + num)) <= seconds
    if num < most:
        assert times.seconds(rows, 1000 * rows, num + 1, (num + 1) * (start + num + 1)) > seconds


@given(st.lists(steps, max_size=60))
def test_whatever_is_measured_no_part_of_a_step_takes_less_than_no_time(measured: list[tuple[float, ...]]) -> None:
    learner = StepLearner()
    for seconds, rows, context, tokens, pairs in measured:
        learner.learn(seconds, int(rows), int(context), int(tokens), pairs)
    assert all(0 <= value < 1e6 for value in msgspec.structs.astuple(learner.times))
    assert 1.0 <= learner.margin <= 1.5


def test_steps_of_other_devices_are_learned_and_those_that_take_long_for_once_do_no_harm() -> None:
    for truth in (gpu, cpu):
        rng, learner = random.Random(1), StepLearner()
        for step in some_steps(rng, 3000):
            stalls = 30.0 if rng.random() < 0.005 else 1.0
            learner.learn(stalls * truth(*step) * rng.gauss(1, 0.02), *step)
        for step in some_steps(random.Random(2), 300):
            assert abs(learner.times.seconds(*step) / truth(*step) - 1) < 0.12, (truth, step)
        assert learner.margin < 1.25


def test_the_first_steps_say_how_fast_a_device_is_before_anything_else_is_known() -> None:
    learner = StepLearner()
    for _ in range(8):
        learner.learn(10 * gpu(1, 1000, 0, 0), 1, 1000)
    assert abs(learner.times.prompt_seconds(2048) / 0.52 - 1) < 0.1


def test_what_steps_do_not_show_any_more_stays_known() -> None:
    rng, learner = random.Random(1), StepLearner()
    for step in some_steps(rng, 1500):
        learner.learn(gpu(*step), *step)
    before = learner.times.prompt_seconds(2048)
    for _ in range(20_000):
        rows = rng.randint(1, 60)
        learner.learn(gpu(rows, 1000 * rows, 0, 0), rows, 1000 * rows)
    assert abs(learner.times.prompt_seconds(2048) / before - 1) < 0.1


def test_a_device_that_becomes_slow_is_believed_after_a_few_hundred_steps() -> None:
    rng, learner = random.Random(1), StepLearner()
    for step in some_steps(rng, 500):
        learner.learn(gpu(*step), *step)
    for step in some_steps(rng, 300):
        learner.learn(2 * gpu(*step), *step)
    assert abs(learner.times.seconds(32, 64_000, 128, 128**2) / gpu(32, 64_000, 128, 128**2) / 2 - 1) < 0.15


def test_the_margin_covers_all_but_one_of_200_steps() -> None:
    rng, learner = random.Random(1), StepLearner(LLAMA_8B_ON_H100)
    ratios = []
    for at in range(8000):
        step = (32, 64_000, 128, 128**2)
        ratio = 1 + abs(rng.gauss(0, 0.1))
        if at > 4000:
            ratios.append(ratio * gpu(*step) / learner.times.seconds(*step) > learner.margin)
        learner.learn(ratio * gpu(*step), *step)
    assert sum(ratios) / len(ratios) < 0.015


@pytest.mark.parametrize("worker", ["decode", "aggregated", "prefill"])
def test_the_steps_of_a_worker_that_served_are_learned(worker: str) -> None:
    """Llama-3.1-8B in bf16 on an H200, 16 requests/s on two of them; each step as [us, rows, context, chunk tokens, pairs]."""
    recorded = json.loads((Path(__file__).parent / "recorded" / "llama8b_steps_h200.json").read_text())[worker]
    learner, ratios = StepLearner(), []
    for us, *what in recorded:
        ratios.append(us / 1e6 / learner.times.seconds(*what))
        learner.learn(us / 1e6, *what)
    # the first prompts of a process, and those that were launched kernel by kernel, took as long as they took
    later = ratios[200:]
    assert sum(0.8 < ratio < 1.2 for ratio in later) > 0.9 * len(later)
    assert 0.95 < median(later) < 1.05
    assert 1.0 <= learner.margin < 1.3


def test_no_more_rows_than_keep_to_a_target_that_was_asked_for() -> None:
    pace = StepPace(LLAMA_8B_ON_H100, 0.010, 0.0, 1.1, 1.02)
    num = pace.most_rows(2048)
    assert pace.times.seconds(num, 2048 * num) < 0.0095 < 1.03 * pace.times.seconds(num + 1, 2048 * (num + 1))
    assert StepPace(LLAMA_8B_ON_H100, 0.010, 1.5).most_rows(2048) == ANY_NUMBER  # nobody asked
    assert StepPace(LLAMA_8B_ON_H100, 0.005).most_rows(2048) == ANY_NUMBER  # one alone takes longer
    assert 256 < StepPace(LLAMA_8B_ON_H100, 0.040).most_rows(1000) < 600


def test_unsteady_steps_leave_prompts_their_part_where_nobody_asked_for_a_target() -> None:
    slow = LLAMA_8B_ON_H100.scaled(20)  # longer than the target without any chunk
    step_s = slow.seconds(8, 800)
    assert StepPace(slow, 0.030, 1.5, margin=2.0).most_s(8, 800) == pytest.approx(1.5 * step_s)
    assert StepPace(slow, 0.030, 0.0, margin=2.0).most_s(8, 800) < 0.015  # it was asked for
