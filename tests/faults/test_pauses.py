"""Processes that are stopped for a while and go on: streams go on too, and nothing runs for clients that have left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.cluster import MODEL, Cluster, prompt_of, stream
from tests.fake_worker import expected_tokens
from tests.processes import HANG_S, BatonProcess, eventually, free_ports
from tests.router.cluster import FakeProcess
from tests.router.tokenizer_folder import make_tokenizer_folder
from tests.worker.small_router import Link

NUM_STREAMS = 30
NUM_TOKENS = 240


@pytest.fixture
def slow_workers() -> Iterator[list[FakeProcess]]:
    """Start two workers that need 12 s for an answer, so that a router's pause is longer than its workers' patience."""
    workers = [FakeProcess(worker_id=name, step_ms=50.0).start() for name in ("d0", "d1")]
    yield workers
    for worker in workers:
        worker.stop()


def test_a_router_that_was_stopped_until_its_workers_gave_it_up_goes_on_with_all_streams(
    tmp_path: Path, slow_workers: list[FakeProcess]
) -> None:
    (port,) = free_ports(1)
    endpoints = [worker.settings.control for worker in slow_workers]
    arguments = ["router", "--model", str(make_tokenizer_folder(tmp_path / MODEL)), "--port", str(port)]
    arguments += [part for endpoint in endpoints for part in ("--worker", endpoint)]
    router = BatonProcess([*arguments, "--max-queue-s", "600"], tmp_path / "router.log", port).start()
    watch = [Link(endpoint, f"watch-{i}") for i, endpoint in enumerate(endpoints)]
    prompts = [[20 + i, 30, 40] for i in range(NUM_STREAMS)]

    def num_running() -> int:
        for link in watch:
            link.pump()
        return sum(link.load.num_running for link in watch)

    def pause() -> None:
        eventually(lambda: num_running() == NUM_STREAMS, "all streams run")
        router.signal(signal.SIGSTOP)
        eventually(lambda: num_running() == 0, "the workers give the router up")
        router.signal(signal.SIGCONT)

    async def run() -> list[list[int]]:
        client = openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0, timeout=HANG_S)
        async with client:
            streams = [asyncio.create_task(stream(client, prompt, max_tokens=NUM_TOKENS)) for prompt in prompts]
            await asyncio.to_thread(pause)
            return [answer.ids for answer in await asyncio.gather(*streams)]

    try:
        router.wait_ready()
        answers = asyncio.run(run())
        settings = slow_workers[0].settings
        assert answers == [expected_tokens(prompt, NUM_TOKENS, settings=settings) for prompt in prompts]
        assert router.metrics()['replays_total{reason="leg_lost"}'] >= NUM_STREAMS
    finally:
        router.kill()
        for link in watch:
            link.socket.close()


def test_what_a_stopped_decode_worker_had_of_clients_that_left_ends_at_its_return(cluster: Cluster) -> None:
    worker, router = cluster.workers["d0"], cluster.routers["0p1d"]
    pid, tokens = worker.engine_pid(), "generation_tokens_total"
    before = worker.metrics()[tokens]

    async def leave_while_it_is_stopped() -> None:
        async with cluster.async_client("0p1d") as client:
            begun: set[int] = set()
            all_begun = asyncio.Event()

            async def one(i: int) -> None:
                def on_token(_answer: Any) -> None:
                    begun.add(i)
                    if len(begun) == NUM_STREAMS:
                        all_begun.set()

                with contextlib.suppress(openai.APIError):
                    await stream(client, prompt_of(60_000 + i, 20), on_token, max_tokens=900)

            streams = [asyncio.create_task(one(i)) for i in range(NUM_STREAMS)]
            await all_begun.wait()
            os.kill(pid, signal.SIGSTOP)
            await asyncio.to_thread(
                eventually, lambda: router.metrics()['workers{leg="decode"}'] == 0, "the router gives the worker up"
            )
            for task in streams:
                task.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
            await asyncio.to_thread(
                eventually, lambda: router.metrics()["num_requests_waiting"] == 0, "the clients are gone"
            )

    try:
        asyncio.run(leave_while_it_is_stopped())
    finally:
        with contextlib.suppress(ProcessLookupError):  # on a slow machine its face has given it up by now
            os.kill(pid, signal.SIGCONT)
    eventually(lambda: worker.metrics()["num_requests_running"] == 0, "nothing runs any more")
    assert worker.metrics()[tokens] - before < NUM_STREAMS * 900
    cluster.assert_quiet()
    cluster.wait_seen()
