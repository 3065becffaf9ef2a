"""What a worker has still to compute and to send, between its reports."""

import random

from hypothesis import given
from hypothesis import strategies as st

from baton.router.lane import Lane
from baton.router.links import Link


def test_what_is_left_shrinks_while_the_first_prompt_is_computed_and_each_that_is_done_sets_it_right() -> None:
    lane = Lane()
    lane.add("a", 1.0, None, now=10.0)
    lane.add("b", 2.0, None, now=10.0)
    assert lane.work_left(10.5) == 2.5
    assert abs(lane.work_left(99.0) - 2.1) < 1e-9  # it takes longer than predicted, and is not done
    lane.computed("a", now=12.0)
    assert lane.work_left(13.0) == 1.0
    lane.computed("b", now=14.0)
    assert lane.work_left(14.0) == 0.0


def test_a_slow_link_sends_one_transfer_after_another_and_none_before_its_prompt_is_begun() -> None:
    lane = Lane()
    for name in "abc":
        lane.add(name, 1.0, 3.0, now=0.0)
    assert lane.link_left(0.0) == 9.0
    lane.computed("a", now=1.0)
    assert lane.link_left(2.0) == 7.0
    assert lane.sent("a", now=3.0) == 0.0
    assert lane.link_left(3.0) == 6.0
    fast = Lane()
    for name in "abc":
        fast.add(name, 1.0, 0.1, now=0.0)
    assert fast.link_left(0.0) == 3.0


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["add", "computed", "sent", "drop"]), st.floats(0, 9))))
def test_whatever_happens_in_whatever_order_nothing_is_left_of_requests_that_are_gone(
    events: list[tuple[int, str, float]],
) -> None:
    lane, now = Lane(), 0.0
    for number, what, seconds in events:
        now += seconds
        if what == "add":
            lane.drop(str(number), now)
            lane.add(str(number), seconds, random.Random(number).choice([None, 2 * seconds]), now)
        else:
            getattr(lane, what)(str(number), now)
        assert lane.work_left(now) >= 0.0
        assert lane.link_left(now) >= 0.0
    for number in range(6):
        lane.drop(str(number), now)
    assert (lane.work_left(now), lane.link_left(now)) == (0.0, 0.0)


def test_a_links_speed_is_learned_from_what_it_exposes_and_from_transfers_that_follow_one_another() -> None:
    fast, slow, queued = Link(), Link(), Link()
    for _ in range(5):
        fast = fast.learn(2048, 0.004, now=0.0, alone_seconds=0.052)
        slow = slow.learn(2048, 0.045, now=0.0, alone_seconds=0.090)
        queued = queued.learn(2048, 2.0, now=0.0, alone_seconds=0.090)  # behind others for two seconds
    assert fast.busy_ms(2048, 0.0) < 4
    assert 80 < slow.busy_ms(2048, 0.0) < 95
    assert 80 < queued.busy_ms(2048, 0.0) < 95
    assert fast.exposed_ms(2048, 52.0, 0.0) < 6
    assert 35 < slow.exposed_ms(2048, 52.0, 0.0) < 60
