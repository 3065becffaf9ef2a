"""An engine that is neither dead nor alive: the thread of its steps stands, all others go on."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from tests.cluster import Cluster
from tests.faults.test_workers_die import run_under
from tests.processes import BatonProcess, eventually
from tests.stopped_thread import stopping_main_thread


@pytest.fixture(autouse=True)
def nothing_is_left(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.revive()
    cluster.assert_quiet()


def num_decode(cluster: Cluster) -> float:
    return cluster.routers["2p2d"].metrics()['workers{leg="decode"}']


def why_unhealthy(worker: BatonProcess) -> str:
    status: str = httpx.get(f"{worker.url}/health").json()["status"]
    return status


def test_a_stuck_step_costs_no_stream_and_its_engine_is_started_anew(cluster: Cluster) -> None:
    worker = cluster.workers["d0"]
    before, pid = worker.info().incarnation, worker.engine_pid()
    restarts = worker.metrics()['engine_restarts_total{reason="stuck"}']
    with stopping_main_thread(pid) as stop:
        run_under(cluster, stop, after_tokens=2)
        eventually(lambda: worker.metrics()['engine_restarts_total{reason="stuck"}'] == restarts + 1, "it is killed")
    worker.wait_ready()
    assert worker.info().incarnation != before
    assert "Current thread" in worker.log()
    eventually(lambda: num_decode(cluster) == 2, "the router takes it in again")


def test_a_worker_whose_loop_stands_is_sent_nothing_and_let_in_again_when_it_turns(cluster: Cluster) -> None:
    worker = cluster.workers["d0"]
    with stopping_main_thread(worker.engine_pid()) as stop:
        stop()
        eventually(lambda: num_decode(cluster) == 1, "the router leaves it out")
        assert why_unhealthy(worker) == "the loop is stuck"
        assert cluster.complete("2p2d", [20, 30, 40, 50], max_tokens=4)[0].finish_reason == "length"
    eventually(lambda: why_unhealthy(worker) == "ok", "it is healthy")
    eventually(lambda: num_decode(cluster) == 2, "the router takes it in again")
