"""However a request ends, both workers are free again at once."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator

import httpx
import pytest
from tests.cluster import MODEL, Cluster, prompt_of
from tests.processes import HANG_S, eventually

PATHS = ["1p1d", "2p2d", "0p1d"]


@pytest.fixture(autouse=True)
def nothing_is_left(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.assert_quiet()


def _body(seed: int, length: int, max_tokens: int = 400) -> bytes:
    return json.dumps(
        {
            "model": MODEL,
            "prompt": prompt_of(seed, length),
            "max_tokens": max_tokens,
            "stream": True,
            "ignore_eos": True,
            "temperature": 0,
        }
    ).encode()


@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_leaves_before_any_answer(cluster: Cluster, path: str) -> None:
    for i in range(8):
        body = _body(20_000 + i, 50 + 80 * i)
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", cluster.routers[path].port)) as connection:
            connection.sendall(head.encode() + body)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("num_pieces", [1, 2, 3, 20])
def test_a_client_that_leaves_in_mid_stream(cluster: Cluster, path: str, num_pieces: int) -> None:
    async def leave(client: httpx.AsyncClient, seed: int) -> None:
        url = f"{cluster.routers[path].url}/v1/completions"
        async with client.stream("POST", url, content=_body(seed, 20 + seed % 300)) as answer:
            count = 0
            async for line in answer.aiter_lines():
                count += line.startswith("data: ")
                if count >= num_pieces:
                    return

    async def run() -> None:
        async with httpx.AsyncClient(timeout=HANG_S) as client:
            await asyncio.gather(*(leave(client, 21_000 + 100 * num_pieces + i) for i in range(8)))

    asyncio.run(run())


@pytest.mark.parametrize("path", PATHS)
def test_a_stop_string_ends_the_answer_where_the_offline_one_ends(cluster: Cluster, path: str) -> None:
    from baton.llm import SamplingParams

    prompt = prompt_of(22_000, 90)
    ((whole,),) = cluster.offline([prompt], SamplingParams(temperature=0, max_tokens=60, ignore_eos=True))
    stop = whole.text[20:22]
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True, stop=(stop,))
    ((wanted,),) = cluster.offline([prompt], params)
    (answer,) = cluster.complete(path, prompt, max_tokens=60, stop=[stop])
    assert (answer.text, answer.finish_reason) == (wanted.text, "stop")


def test_a_deadline_that_passes_gives_one_error_and_frees_everything(cluster: Cluster) -> None:
    async def ask(client: httpx.AsyncClient, seed: int) -> httpx.Response:
        body = json.loads(_body(seed, 40, max_tokens=900))
        return await client.post(
            f"{cluster.routers['1p1d'].url}/v1/completions",
            json={**body, "stream": False},
            headers={"x-request-timeout": "0.3"},
        )

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=HANG_S) as client:
            return list(await asyncio.gather(*(ask(client, 23_000 + i) for i in range(16))))

    answers = asyncio.run(run())
    assert {answer.status_code for answer in answers} <= {200, 504}


def test_a_request_that_no_worker_can_hold_is_refused_and_leaves_nothing(cluster: Cluster) -> None:
    answer = httpx.post(
        f"{cluster.routers['1p1d'].url}/v1/completions",
        json={"model": MODEL, "prompt": prompt_of(24_000, 2000), "max_tokens": 4},
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_leases_and_block_logs_stand_in_redis(cluster: Cluster) -> None:
    cluster.complete("2p2d", prompt_of(25_000, 64))
    for name in cluster.workers:
        answer = eventually(
            lambda name=name: cluster.redis.ask(f"HGET baton:{MODEL}:worker:{name} legs"),  # type: ignore[misc]
            f"{name} has a lease",
        )
        assert (b"prefill" if name.startswith("p") else b"decode") in answer
        left = cluster.redis.ask(f"PTTL baton:{MODEL}:worker:{name}")
        assert 0 < int(left[1:]) <= 3000
    lengths = [int(cluster.redis.ask(f"XLEN baton:{MODEL}:blocks:{name}")[1:]) for name in ("p0", "p1", "d0", "d1")]
    assert sum(lengths) > 0
