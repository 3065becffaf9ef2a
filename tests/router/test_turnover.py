"""When a place in a batch becomes free: what is learned, and what is predicted of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.messages import Load
from baton.router.turnover import AnswerLength, Foresight, Pace, num_places, wait_s


def test_nobody_is_predicted_to_wait_before_a_pace_is_known() -> None:
    assert wait_s(50, 8, [], 100.0, Pace().seconds) == 0.0


@given(st.integers(-5, 500), st.lists(st.floats(1, 500), max_size=64), st.floats(1, 500), st.floats(0.001, 1))
def test_who_stands_further_back_waits_no_less(position: int, left: list[float], length: float, pace: float) -> None:
    left = sorted(min(each, length) for each in left)
    here, behind = (wait_s(at, 64, left, length, pace) for at in (position, position + 1))
    # between two turns a place is taken anew by an answer of whole length
    assert 0.0 <= here <= behind + 1e-6 or (position + 1) % 64 == 0


def test_the_first_place_is_free_when_the_shortest_answer_has_ended() -> None:
    assert wait_s(1, 4, [10.0, 50.0, 60.0, 70.0], 80.0, 0.5) == 25.0
    assert wait_s(4, 4, [10.0, 50.0, 60.0, 70.0], 80.0, 0.5) == 45.0


def test_a_pace_is_the_time_between_steps_and_idle_time_is_none() -> None:
    pace = Pace()
    pace.report(Load(num_running=0, num_steps=10), 0.0)
    pace.report(Load(num_running=2, num_steps=11), 100.0)
    assert pace.seconds == 0.0
    pace.report(Load(num_running=2, num_steps=15), 102.0)
    assert pace.seconds == 0.5
    pace.report(Load(num_running=2, num_steps=15), 103.0)  # a report that repeats the last one's steps
    pace.report(Load(num_running=0, num_steps=16), 103.0)
    pace.report(Load(num_running=0, num_steps=16), 500.0)
    assert 0.5 < pace.seconds < 0.7


def test_answers_are_as_long_as_asked_until_some_have_ended_and_then_as_those() -> None:
    length = AnswerLength()
    assert length.predict(100) == 100
    assert length.predict(None) == length.predict(100_000) == 256
    for _ in range(500):
        length.learn(4000, 20)
        length.learn(None, 30)
    assert 20 < length.predict(4000) < 30
    assert 30 < length.predict(None) < 40
    assert length.predict(10) == 10
    assert length.predict(200) == 200  # callers of another kind
    assert length.predict_rest(4000, 5) < 25
    assert length.predict_rest(4000, 300) == 300
    assert length.predict_rest(4000, 3990) == 10


def test_blocks_bound_the_places_when_sequences_are_long() -> None:
    assert num_places(Load(), 0) > 1 << 20
    assert num_places(Load(num_running=4, kv_total_blocks=100, kv_free_blocks=90), 64) == 40
    assert num_places(Load(num_running=4, kv_total_blocks=100, kv_free_blocks=90), 16) == 16


def test_waits_that_come_out_longer_are_foreseen_and_forgotten() -> None:
    foresight = Foresight()
    foresight.learn(0.1, 50.0)  # too short to say anything
    assert foresight.factor == 1.0
    for _ in range(30):
        foresight.learn(4.0, 6.0)
    assert foresight.factor == pytest.approx(1.5, abs=0.05)
    for _ in range(30):
        foresight.learn(4.0, 400.0)
    assert 1.9 < foresight.factor <= 2.0
    for _ in range(100):
        foresight.learn(4.0, 3.0)
    assert foresight.factor == 1.0
