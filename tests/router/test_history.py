"""Rates, percentiles and failures of the last 15 minutes: what is counted, over which time, and within which bounds."""

from pathlib import Path

import httpx
import pytest

from baton.errors import QueueFull
from baton.metrics import RouterMetrics
from baton.router import history as module
from baton.router.history import NUM_POINTS, History
from baton.router.journal import Journal

from .cluster import cluster, wait_until


class Clock:
    """A time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return 1.7e9 + self.now

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def test_a_point_holds_what_came_in_its_interval(clock: Clock) -> None:
    metrics, journal = RouterMetrics("m"), Journal()
    history = History(metrics, journal)
    for _ in range(10):
        metrics.e2e_request_latency_seconds.observe(2.0)
        metrics.time_to_first_token_seconds.observe(0.03)
    metrics.generation_tokens.inc(500)
    metrics.inter_token_latency_seconds.observe(0.008)
    metrics.request_success.inc("error")
    metrics.replays.inc("decode_lost")
    metrics.replays.inc("gap")
    journal.refuse("r", b"", QueueFull("busy"))
    clock.now += 5
    history.sample()
    clock.now += 5
    history.sample()
    points = history.describe()["points"]
    assert points["requests_per_s"] == [2, 0]
    assert points["tokens_per_s"] == [100, 0]
    assert (points["errors"], points["refusals"], points["replays"]) == ([1, 0], [1, 0], [2, 0])
    assert points["first_token_p50_ms"] == [37.5, None]  # the middle of the bucket from 25 to 50
    assert points["first_token_p99_ms"] == [49.75, None]
    assert 7.5 < points["gap_p50_ms"][0] <= 10
    assert points["at"][1] - points["at"][0] == 5


def test_the_last_minute_and_all_of_the_time_are_told_apart_and_up_to_now(clock: Clock) -> None:
    metrics = RouterMetrics("m")
    history = History(metrics, Journal())
    metrics.generation_tokens.inc(9000)
    for _ in range(20):
        clock.now += 5
        history.sample()
    metrics.generation_tokens.inc(600)  # after the last point
    told = history.describe()
    assert (told["minute"]["seconds"], told["minute"]["tokens_per_s"]) == (60, 10)
    assert (told["all"]["seconds"], told["all"]["tokens_per_s"]) == (100, 96)


def test_fifteen_minutes_are_kept_and_no_more(clock: Clock) -> None:
    metrics = RouterMetrics("m")
    history = History(metrics, Journal())
    for _ in range(NUM_POINTS + 50):
        clock.now += 5
        history.sample()
    told = history.describe()
    assert {len(values) for values in told["points"].values()} == {NUM_POINTS}
    assert told["all"]["seconds"] == 15 * 60


def test_a_router_samples_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL_S", 0.01)
    with cluster(tmp_path, [{"worker_id": "d0"}]) as made:
        body = {"prompt": [20, 21, 22], "max_tokens": 5}
        httpx.post(f"{made.url}/v1/completions", json=body).raise_for_status()

        def tokens() -> float:
            points = httpx.get(f"{made.url}/debug/history").raise_for_status().json()["points"]
            return sum(points["tokens_per_s"])

        wait_until(lambda: tokens() > 0)
