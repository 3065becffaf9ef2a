"""Whether a loop turns is judged by looks: what nobody looked at does not count."""

from __future__ import annotations

from baton.worker.beat import MAX_LOOK_S, Beat


def test_a_turn_that_lasts_longer_than_it_may_is_stuck_until_the_next() -> None:
    beat = Beat(lambda: 2.0)
    beat.turns += 1
    assert not any(beat.look(0.25 * i) for i in range(8))
    assert beat.look(2.0)
    assert beat.is_stuck
    beat.turns += 1
    assert not beat.look(2.25)
    assert beat.look(4.5) is False


def test_nothing_is_judged_before_the_first_turn() -> None:
    beat = Beat(lambda: 0.1)
    assert not any(beat.look(0.25 * i) for i in range(100))


def test_a_pause_of_the_whole_machine_is_no_stuck_turn() -> None:
    beat = Beat(lambda: 2.0)
    beat.turns += 1
    beat.look(0.0)
    assert not beat.look(3600.0)
    assert not beat.look(3600.0 + 2.0 - MAX_LOOK_S - 0.1)


def test_a_longer_step_may_take_longer() -> None:
    limit_s = 30.0
    beat = Beat(lambda: limit_s)
    beat.turns += 1
    assert not any(beat.look(0.5 * i) for i in range(60))
    limit_s = 1.0
    assert beat.look(30.1)
