"""A worker whose model is not that of the others: it is told which fact differs, and so is the log, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from baton.router import pool as pool_module

from .cluster import Cluster, cluster, wait_until


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
