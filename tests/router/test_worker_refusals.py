"""A worker whose model is not that of the others: it is told which fact differs, and so is the log, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from baton.router import pool as pool_module
from baton.router.router_state import RouterState

from .cluster import Cluster, FakeProcess, cluster, wait_until


class Log:
    """In the place of the pool's log."""

    def __init__(self) -> None:
        self.refused: list[dict[str, Any]] = []

    def error(self, event: str, **facts: Any) -> None:
        assert event == "worker_refused"
        self.refused.append(facts)

    def info(self, *_event: str, **_facts: Any) -> None: ...

    warning = info


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    made = Log()
    monkeypatch.setattr(pool_module, "_log", made)
    return made


def hellos(made: Cluster, worker_id: str) -> int:
    """Wait until a worker has answered a few times more."""
    client = made.ask(lambda state: state.pool._clients[made.workers[worker_id].settings.control])
    heard: set[float] = set()
    wait_until(lambda: heard.add(client.last_heard) or len(heard) > 3)
    return len(heard)


def test_a_worker_with_other_blocks_is_refused_with_the_fact_that_differs(tmp_path: Path, log: Log) -> None:
    workers = [
        {"worker_id": "p0", "legs": ["prefill"], "block_size": 32, "max_model_len": 1024},
        {"worker_id": "d0"},
        {"worker_id": "d1", "model_name": "another"},
    ]
    with cluster(tmp_path, workers, num_served=1) as made:
        wait_until(lambda: {each["worker_id"] for each in log.refused} == {"p0", "d1"})
        hellos(made, "p0")
        hellos(made, "d1")
        said = {each["worker_id"]: each["reason"] for each in log.refused}
        assert said == {
            "p0": "max_model_len is 1024, and 2048 on d0; block_size is 32, and 16 on d0",
            "d1": "it serves 'another', this router 'tiny'",
        }
        assert len(log.refused) == 2  # however often they say who they are
        refusals = made.ask(lambda state: {client.refusal for client in state.pool._clients.values()})
        assert refusals == {"", *said.values()}  # each hello brings it
        assert set(made.ask(lambda state: set(state.pool.workers))) == {"d0"}


def test_the_second_of_two_workers_with_one_id_is_refused_until_the_first_is_gone(tmp_path: Path, log: Log) -> None:
    with cluster(tmp_path, [{"worker_id": "d0"}]) as made:
        first = made.workers["d0"]
        second = FakeProcess(worker_id="d0").start()
        try:
            made.ask(lambda state: state.pool.connect(second.settings.control))
            wait_until(lambda: log.refused)
            (refused,) = log.refused
            assert refused["endpoint"] == second.settings.control
            assert refused["reason"] == (
                f"worker_id='d0' is that of the worker at {first.settings.control}. Give each worker its own --worker-id."
            )
            first.kill()
            wait_until(lambda: made.ask(_endpoints) == [second.settings.control])
        finally:
            second.stop()


def test_a_worker_with_two_names_is_served_by_one_of_them(tmp_path: Path) -> None:
    with cluster(tmp_path, [{"worker_id": "d0"}]) as made:
        first = made.workers["d0"].settings.control
        other = first.replace("127.0.0.1", "localhost")
        made.ask(lambda state: state.pool.connect(other))
        made.ask(lambda state: state.pool._twins, until=True)
        assert made.ask(_endpoints) == [first]
        first_client = made.ask(lambda state: state.pool._clients[first])
        heard = first_client.last_heard
        wait_until(lambda: first_client.last_heard > heard + 1.5)
        assert not made.state.pool.lost


def _endpoints(state: RouterState) -> list[str]:
    return [worker.client.endpoint for worker in state.pool.workers.values()]
