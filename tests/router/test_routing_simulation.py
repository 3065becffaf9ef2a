"""The router's choices over traffic in a model of two H100s: never worse than either pure way, and quick to follow."""

from __future__ import annotations

from typing import Any

import pytest

from .serving_model import Request, ServingModel, good_share

WAYS: dict[str, dict[str, Any]] = {
    "remote": {"path": "remote"},
    "aggregated": {"num_prefill": 0, "num_decode": 2},
    "auto": {"path": "auto"},
}


def share(way: str, rate: float, itl_ms: float, link: float) -> float:
    model = ServingModel(target_ms=itl_ms, bandwidth=link, **WAYS[way])
    model.run(rate, 4.0)
    return good_share(model, itl_ms)


@pytest.mark.parametrize(("rate", "itl_ms", "link"), [(8, 10, 25e9), (16, 15, 150e9), (16, 30, 3e9), (20, 30, 150e9)])
def test_auto_serves_as_many_in_time_as_the_better_of_both_pure_ways(rate: float, itl_ms: float, link: float) -> None:
    shares = {way: share(way, rate, itl_ms, link) for way in WAYS}
    assert shares["auto"] >= 0.97 * max(shares.values()), shares


def test_two_workers_that_take_prompts_for_one_another_are_as_good_as_two_that_do_not() -> None:
    both = ServingModel(num_prefill=0, num_decode=2, also_prefill=True, target_ms=30.0)
    both.run(16, 4.0)
    assert good_share(both, 30.0) >= 0.97 * share("aggregated", 16, 30.0, 150e9)


def test_a_rate_that_rises_is_followed_within_seconds() -> None:
    model = ServingModel(target_ms=15.0, bandwidth=25e9)
    requests = model.run(lambda at: 4.0 if at < 3.0 else 17.0, 6.0)
    early = [r for r in requests if r.at < 3.0]
    late = [r for r in requests if 4.0 < r.at < 6.0]
    assert local_share(late) < local_share(early) - 0.1  # a decode worker that was idle has a batch to look after now
    assert sum(r.is_good(0.015) for r in late) >= 0.9 * len(late)


def test_a_worker_whose_batch_leaves_no_time_for_chunks_gets_no_prompts() -> None:
    model = ServingModel(target_ms=10.0)
    requests = model.run(16, 5.0)
    assert local_share([r for r in requests if r.at > 2.0]) < 0.05


def local_share(requests: list[Request]) -> float:
    return sum(r.way == "local" for r in requests) / len(requests)
