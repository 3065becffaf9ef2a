"""Thousands of seeds: a router and workers in virtual time, under faults that are drawn from the seed.

SEEDS=100000 .venv/bin/python -m pytest tests/simulation -n 2
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
import structlog
from tests.simulation.play import Play, play_all

NUM_SEEDS = int(os.environ.get("SEEDS", "1600"))
NUM_PARTS = 8
QUIET = structlog.make_filtering_bound_logger(logging.CRITICAL)
"""So that several processes share them."""


@pytest.fixture(autouse=True)
def _no_log() -> Iterator[None]:
    """Write none: it would take as long as all else."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=QUIET)
    yield
    structlog.configure(**before)


@pytest.mark.parametrize("part", range(NUM_PARTS))
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
