"""The router's choices over minutes of traffic, in a model of two H100s: never worse than either pure way."""

from __future__ import annotations

from typing import Any

import pytest

from .serving_model import ServingModel, good_share

WAYS: dict[str, dict[str, Any]] = {
    "remote": {"path": "remote"},
    "aggregated": {"num_prefill": 0, "num_decode": 2},
    "auto": {"path": "auto"},
}


def share(way: str, rate: float, itl_ms: float, seconds: float, link: float) -> float:
    model = ServingModel(target_ms=itl_ms, bandwidth=link, **WAYS[way])
    model.run(rate, seconds)
    return good_share(model, itl_ms)


@pytest.mark.parametrize(("rate", "itl_ms", "link"), [(8, 10, 25e9), (16, 15, 150e9), (16, 30, 3e9)])
def test_auto_serves_as_many_in_time_as_the_better_of_both_pure_ways(rate: float, itl_ms: float, link: float) -> None:
    shares = {way: share(way, rate, itl_ms, 5.0, link) for way in WAYS}
    assert shares["auto"] >= 0.97 * max(shares.values()), shares
