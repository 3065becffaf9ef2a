"""Thousands of seeds: a router and workers in virtual time, under faults that are drawn from the seed.

SEEDS=100000 .venv/bin/python -m pytest tests/simulation -n 2
"""

from __future__ import annotations

import os

import pytest
from tests.simulation.play import Play, play_all

NUM_SEEDS = int(os.environ.get("SEEDS", "1600"))
NUM_PARTS = 8
"""So that several processes share them."""


pytestmark = pytest.mark.usefixtures("quiet_log")


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.no_cover) for part in range(1, NUM_PARTS))])
def test_whatever_happens_each_request_ends_once_with_its_own_tokens_and_nothing_is_left(part: int) -> None:
    num = NUM_SEEDS // NUM_PARTS
    play_all(range(part * num, (part + 1) * num))


def test_a_seed_is_played_the_same_again() -> None:
    histories = []
    for _ in range(2):
        play = Play(3, remembers=True)
        play.run()
        histories.append(play.world.history)
    assert histories[0] == histories[1]
