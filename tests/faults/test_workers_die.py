"""A worker that dies under 50 live streams: each stream goes on at the next token, unchanged."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import uuid
from collections.abc import Callable, Iterator

import pytest
from tests.cluster import Answer, Cluster, prompt_of, stream
from tests.processes import eventually

from baton.llm import RequestOutput, SamplingParams

NUM_STREAMS = 50
NUM_TOKENS = 100


@pytest.fixture(autouse=True)
def nothing_is_left(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.revive()
    cluster.assert_quiet()


@functools.cache
def decided(cluster: Cluster) -> tuple[list[list[int]], list[list[int]]]:
    """Return prompts and their greedy answers, drawn anew where two tokens are so near that the order of additions decides."""
    seed = 30_000
    prompts = [prompt_of(seed + i, 20 + (i * 29) % 220) for i in range(NUM_STREAMS)]
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=2)
    while True:
        outputs = cluster.offline_outputs(prompts, params)
        near = [i for i, output in enumerate(outputs) if _smallest_lead(output) < 1e-4]
        if not near:
            return prompts, [output.outputs[0].token_ids for output in outputs]
        seed += 100_000
        for i in near:
            prompts[i] = prompt_of(seed + i, len(prompts[i]))


def _smallest_lead(output: RequestOutput) -> float:
    """Return by how much the likeliest token leads the next, where it leads least."""
    rows = output.outputs[0].logprobs
    assert rows is not None
    ranked = [sorted((entry.logprob for entry in row.values()), reverse=True) for row in rows]
    return min(first - second for first, second, *_ in ranked)


def run_under(cluster: Cluster, disturb: Callable[[], None], *, after_tokens: int, router: str = "2p2d") -> None:
    """Run 50 streams; disturb once half of them have so many tokens; compare all with the offline answers."""
    prompts, wanted = decided(cluster)
    salt = uuid.uuid4().hex  # nothing of them is cached, though others ran the same

    async def run() -> list[Answer]:
        begun: set[int] = set()
        disturbed = asyncio.Event()

        async def one(client: object, i: int) -> Answer:
            def on_token(answer: Answer) -> None:
                if len(answer.ids) >= after_tokens:
                    begun.add(i)
                    if len(begun) >= NUM_STREAMS // 2:
                        disturbed.set()

            return await stream(client, prompts[i], on_token, max_tokens=NUM_TOKENS, cache_salt=salt)  # type: ignore[arg-type]

        async with cluster.async_client(router) as client:
            streams = [asyncio.create_task(one(client, i)) for i in range(NUM_STREAMS)]
            await disturbed.wait()
            disturb()
            return list(await asyncio.gather(*streams))

    answers = asyncio.run(run())
    assert [answer.ids for answer in answers] == wanted
    assert {answer.finish_reason for answer in answers} == {"length"}


@pytest.mark.parametrize(("router", "after_tokens"), [("2p2d", 20), ("0p2d", 1)])
def test_a_decode_worker_is_killed(cluster: Cluster, router: str, after_tokens: int) -> None:
    """Of "0p2d" the worker that dies is the other half of every pair."""
    run_under(cluster, cluster.workers["d0"].kill, after_tokens=after_tokens, router=router)


@pytest.mark.parametrize("after_tokens", [1, 20])
def test_a_prefill_worker_is_killed(cluster: Cluster, after_tokens: int) -> None:
    run_under(cluster, cluster.workers["p0"].kill, after_tokens=after_tokens)


def test_an_engine_process_dies_and_its_face_starts_it_anew(cluster: Cluster) -> None:
    worker = cluster.workers["d0"]
    before = worker.info().incarnation
    run_under(cluster, lambda: os.kill(worker.engine_pid(), signal.SIGKILL), after_tokens=2)
    worker.wait_ready()
    assert worker.info().incarnation != before


def test_redis_dies_in_mid_run_and_nothing_fails(cluster: Cluster) -> None:
    try:
        run_under(cluster, cluster.redis.kill, after_tokens=2)
        run_under(cluster, lambda: None, after_tokens=1)  # and without it from the start
    finally:
        cluster.redis.start()
    key = b"worker:d0"
    eventually(lambda: key in cluster.redis.ask("KEYS *"), "workers announce themselves again")


def test_redis_is_wiped_in_mid_run_and_nothing_fails(cluster: Cluster) -> None:
    run_under(cluster, lambda: cluster.redis.ask("FLUSHALL") and None, after_tokens=2)
    eventually(lambda: b"worker:p0" in cluster.redis.ask("KEYS *"), "workers announce themselves again")
