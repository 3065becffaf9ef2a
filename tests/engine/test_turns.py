"""Whose turn it is: tenants share by weight, and who asks for much waits behind itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from baton.engine.sequence import SequenceState
from baton.engine.turns import Turns
from baton.protocol import NOBODY, Share

from .test_scheduler import make, planned, sequence, step

A, B = Share(b"a"), Share(b"b")


def served(turns: Turns, queue: list[tuple[float, str]], count: int) -> str:
    """Serve the first by turn, again and again."""
    names = ""
    for _ in range(count):
        turn, name = min(queue)
        queue.remove((turn, name))
        turns.begin(turn)
        names += name
    return names


def test_without_tenants_every_turn_is_the_same() -> None:
    turns = Turns()
    assert [turns.take(NOBODY, work) for work in (5, 500, 1)] == [0.0, 0.0, 0.0]


def test_one_that_comes_later_goes_before_what_another_has_queued() -> None:
    turns = Turns()
    queue = [(turns.take(A, 100), "a") for _ in range(20)]
    assert served(turns, queue, 5) == "aaaaa"
    queue.append((turns.take(B, 100), "b"))
    assert "b" in served(turns, queue, 2)


def test_work_is_shared_by_weight() -> None:
    turns = Turns()
    queue = [(turns.take(Share(b"a", 3.0), 100), "a") for _ in range(100)]
    queue += [(turns.take(B, 100), "b") for _ in range(100)]
    assert abs(served(turns, queue, 40).count("a") - 30) <= 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 500)), min_size=1, max_size=60))
def test_no_tenant_with_work_falls_behind_by_more_than_one_request_of_each(requests: list[tuple[str, int]]) -> None:
    turns, queue, done = Turns(), [], dict.fromkeys("abc", 0)
    for at, (name, work) in enumerate(requests):
        queue.append((turns.take(Share(name.encode()), work), at, name, work))
    most = max(work for _, work in requests)
    for entry in sorted(queue):
        turns.begin(entry[0])
        done[entry[2]] += entry[3]
        waiting = {name for turn, at, name, _ in queue if (turn, at) > entry[:2]}
        if waiting:
            assert max(done.values()) - min(done[name] for name in waiting) <= 2 * most


def test_a_thousand_tenants_that_went_are_forgotten() -> None:
    turns = Turns()
    for i in range(5000):
        turns.begin(turns.take(Share(b"%d" % i), 10) + 10)
    assert len(turns._next) <= 1025


def test_a_flood_leaves_places_to_others_and_goes_before_none_of_them() -> None:
    scheduler = make(max_num_seqs=8, max_num_batched_tokens=64)
    flood = [sequence(f"{i}", 3, share=A) for i in range(30)]
    for each in flood:
        scheduler.add(each)
    step(scheduler)
    assert len(scheduler.running) == 7
    small = [sequence(name, 3, share=B) for name in "xy"]
    for each in small:
        scheduler.add(each)
    assert small[0] in planned(scheduler).admitted
    assert scheduler.waiting[0] in (flood[7], small[1])
    scheduler.finish(flood[0])
    scheduler.finish(flood[1])
    for each in flood[2:7]:
        scheduler.finish(each)
    assert small[1] in planned(scheduler).admitted


def test_one_tenant_alone_on_a_worker_of_one_place_is_served() -> None:
    scheduler = make(max_num_seqs=1)
    only = sequence("a", 3, share=A)
    scheduler.add(only)
    step(scheduler)
    assert only.state is SequenceState.RUNNING


def test_a_priority_orders_within_a_tenant() -> None:
    scheduler = make()
    late, urgent = sequence("a", 3, share=A), sequence("b", 3, share=A, priority=-1)
    scheduler.add(late)
    scheduler.add(urgent)
    assert scheduler.waiting == [urgent, late]
