"""Three times the load that a worker can carry: the rest is refused at once, and what was taken in goes on at its pace."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
from tests.router.cluster import FIRST_WORD, Cluster, cluster
from tests.router.test_api import answer_to

NUM_TOKENS = 100
# 4 places and 100 steps of 5 ms: 8 answers a second
WORKER: dict[str, Any] = {"worker_id": "d0", "num_places": 4, "step_ms": 5.0}
PREFILL: dict[str, Any] = {"worker_id": "p0", "legs": ["prefill"], "step_ms": 1.0, "prefill_rate": 1e6}


def prompt(i: int) -> list[int]:
    return [FIRST_WORD + i // 50, FIRST_WORD + i % 50, *range(FIRST_WORD, FIRST_WORD + 20)]


def body(i: int) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt(i), "max_tokens": NUM_TOKENS, "ignore_eos": True, "temperature": 0}


def fill(made: Cluster, http: httpx.AsyncClient) -> list[asyncio.Task[httpx.Response]]:
    """Take all places, and give back the answers to come."""
    return [asyncio.create_task(http.post("/v1/completions", json=body(i))) for i in range(WORKER["num_places"])]


def check(made: Cluster, answers: list[httpx.Response], first: int) -> tuple[int, int]:
    """Check that each answer is whole or refused; count both."""
    num_refused = 0
    for i, answer in enumerate(answers, first):
        if answer.status_code == 429:
            num_refused += 1
            assert int(answer.headers["retry-after"]) >= 1
            assert "--max-queue-s 1." in answer.json()["error"]["message"]
        else:
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["text"] == answer_to(made, prompt(i), NUM_TOKENS)
    return len(answers) - num_refused, num_refused


async def overload(made: Cluster) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=made.url, limits=limits) as http:
        running = fill(made, http)
        decode = made.state.pool.workers["d0"]
        while not (decode.pace.seconds and decode.load.num_running == WORKER["num_places"]):
            await asyncio.sleep(0.001)
        more = [asyncio.create_task(http.post("/v1/completions", json=body(100 + i))) for i in range(60)]
        assert (await http.get("/metrics")).status_code == 200
        whole, refused = check(made, await asyncio.gather(*more), 100)
        assert whole
        assert refused
        assert check(made, await asyncio.gather(*running), 0) == (len(running), 0)
        assert made.state.metrics.admission_refusals.value("queue") == refused
        # once it is over, nothing of it is left: the next one is taken in
        await asyncio.to_thread(made.ask, lambda state: not state.dispatcher.flows, until=True)
        assert (await http.post("/v1/completions", json=body(99))).status_code == 200


def test_what_a_decode_worker_cannot_begin_in_time_is_refused_at_once(tmp_path: Path) -> None:
    with cluster(tmp_path, [WORKER], max_queue_s=1.0) as made:
        asyncio.run(overload(made))


def test_a_first_token_that_comes_at_once_hides_no_wait_for_the_second(tmp_path: Path) -> None:
    with cluster(tmp_path, [WORKER, PREFILL], max_queue_s=1.0, path="remote") as made:
        asyncio.run(overload(made))
