"""What /debug/workers tells of workers that are gone, and of what workers sent one another."""

import time
from pathlib import Path
from typing import Any

import httpx

from .cluster import Cluster, cluster, wait_until

PROMPT = [20 + i % 60 for i in range(40)]


def told_by(made: Cluster) -> dict[str, Any]:
    told: dict[str, Any] = httpx.get(f"{made.url}/debug/workers").raise_for_status().json()
    return told


def ask(made: Cluster, **body: Any) -> httpx.Response:
    return httpx.post(f"{made.url}/v1/completions", json={"prompt": PROMPT, "max_tokens": 5} | body)


def test_a_worker_that_died_stays_with_when_and_why_and_what_it_was_doing(tmp_path: Path) -> None:
    dying, other = {"worker_id": "d0", "die_after_tokens": 5}, {"worker_id": "d1"}
    began = time.time()
    with cluster(tmp_path, [dying, other], policy="round-robin") as made:
        assert ask(made, max_tokens=40).status_code == 200
        told = told_by(made)
        assert [worker["id"] for worker in told["workers"]] == ["d1"]
        (lost,) = told["lost"]
        assert (lost["id"], lost["legs"], lost["state"], lost["in_flight"]) == ("d0", ["decode"], "died", 1)
        assert lost["reason"] in ("silent", "takes no messages")
        assert began <= lost["since"] <= lost["at"] <= told["now"]


def test_a_worker_that_drained_left_and_did_not_die(tmp_path: Path) -> None:
    with cluster(tmp_path, [{"worker_id": "d0"}, {"worker_id": "d1"}]) as made:
        made.workers["d0"].terminate()
        wait_until(lambda: told_by(made)["lost"])
        (lost,) = told_by(made)["lost"]
        assert (lost["id"], lost["state"], lost["in_flight"]) == ("d0", "left", 0)


def test_transfers_are_added_up_for_each_pair_of_live_workers(tmp_path: Path) -> None:
    workers = [{"worker_id": "p0", "legs": ["prefill"]}, {"worker_id": "d0"}]
    with cluster(tmp_path, workers, path="remote") as made:
        for i in range(3):
            ask(made, prompt=[90 + i, *PROMPT]).raise_for_status()
        (sent,) = told_by(made)["transfers"]
        assert (sent["prefill"], sent["decode"], sent["count"]) == ("p0", "d0", 3)
        assert sent["last_tokens"] == len(PROMPT) + 1
        assert sent["bytes"] >= sent["last_bytes"] >= 0
        assert sent["seconds"] > 0
        made.workers["p0"].kill()
        wait_until(lambda: told_by(made)["lost"])
        assert told_by(made)["transfers"] == []
