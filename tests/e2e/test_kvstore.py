"""The store of a host under real workers: what decode computed in one turn is a prefix hit for prefill in the next one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.cluster import Answer, RedisServer, make_model, prompt_of
from tests.processes import HANG_S, BatonProcess, assert_quiet, eventually, free_ports, start_worker

from baton.llm import LLM, SamplingParams

BLOCK = 16
KEY = ("--cache-key", "the key of these tests")
COMMON = ("--served-model-name", "tiny", *KEY)


class Host:
    """One machine: Redis, a store, one worker of each leg, a router."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.memory = tempfile.mkdtemp(prefix="baton-test-", dir="/dev/shm")
        self.disk = folder / "disk"
        self.model = make_model(folder / "tiny")
        self.redis = RedisServer(folder / "redis")
        self.redis.start()
        self.start_store()
        self.workers = {leg: self.start_worker(leg) for leg in ("prefill", "decode")}
        (port,) = free_ports(1)
        arguments = ["router", "--model", str(self.model), "--port", str(port), "--redis-url", self.redis.url]
        arguments += [*COMMON, "--path", "remote"]
        self.router = BatonProcess(arguments, folder / "router.log", port).start()
        self.offline = LLM(str(self.model), use_tqdm=False, kv_cache_memory_bytes=32 * 2**20)
        for process in (self.store, self.router, *self.workers.values()):
            process.wait_ready()

    def start_store(self) -> None:
        (port,) = free_ports(1)
        arguments = ["kvstore", "--kv-store", self.memory, "--kv-store-size", "0.02", "--worker-id", "store"]
        arguments += ["--kv-store-dir", str(self.disk), "--port", str(port), "--redis-url", self.redis.url, *COMMON]
        self.store = BatonProcess(arguments, self.folder / "store.log", port).start()

    def start_worker(self, leg: str) -> BatonProcess:
        flags = ("--redis-url", self.redis.url, "--kv-store", self.memory, "--lease-s", "4", "--drain-s", "1")
        return start_worker(leg, self.model, self.folder, leg, *COMMON, *flags)

    def restart(self, leg: str) -> None:
        """Start a worker anew: nothing is cached there."""
        (former,) = (worker["incarnation"] for worker in self.router.seen() if worker["legs"] == [leg])
        self.workers[leg].kill()
        self.workers[leg] = self.start_worker(leg)
        self.workers[leg].wait_ready()
        # a killed worker is seen until its lease ends, with the store that it saw
        eventually(
            lambda: former not in {worker["incarnation"] for worker in self.router.seen()},
            f"a new {leg} worker is seen",
        )
        self.wait_seen()

    def wait_seen(self) -> None:
        """Wait until the router sees both workers, and both see the store."""

        def all_see() -> bool:
            workers = self.router.seen()
            return len(workers) == 2 and all(worker["store"] == "store" for worker in workers)

        eventually(all_see, "the store is seen")

    def ask(self, prompt: list[int], num_new: int = 8) -> tuple[Answer, dict[str, Any]]:
        """Ask for some tokens; return them, as the offline LLM gives them too, and the usage."""
        body = {"model": "tiny", "prompt": prompt, "max_tokens": num_new, "temperature": 0, "ignore_eos": True}
        answer = httpx.post(
            f"{self.router.url}/v1/completions", json={**body, "return_token_ids": True}, timeout=HANG_S
        )
        assert answer.status_code == 200, answer.text
        choice = answer.json()["choices"][0]
        params = SamplingParams(temperature=0, max_tokens=num_new, ignore_eos=True)
        (wanted,) = self.offline.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
        assert choice["token_ids"] == wanted.outputs[0].token_ids
        return Answer(choice["token_ids"]), answer.json()["usage"]

    def wait_stored(self, num_blocks: int) -> None:
        """Wait until the store has, in memory and on disk, at least so many blocks."""
        nbytes = num_blocks * BLOCK * 3 * 2 * 2 * 16 * 4

        def are_there() -> bool:
            metrics = self.store.metrics()
            return all(metrics[f'kv_store_used_bytes{{tier="{tier}"}}'] >= nbytes for tier in ("memory", "disk"))

        eventually(are_there, f"{num_blocks} blocks are stored")

    def stop(self) -> None:
        for process in (self.router, *self.workers.values(), self.store):
            process.kill()
        self.redis.kill()
        shutil.rmtree(self.memory, ignore_errors=True)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = Host(tmp_path_factory.mktemp("host"))
    try:
        yield host
    finally:
        host.stop()


def test_the_second_turn_of_a_chat_is_cached_where_its_prompt_is_computed(host: Host) -> None:
    host.wait_seen()
    prompt = prompt_of(1, 40)
    first, usage = host.ask(prompt, 400)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    num_full = (len(prompt) + len(first.ids) - 1) // BLOCK
    host.wait_stored(num_full)

    second = [*prompt, *first.ids, *prompt_of(2, 30)]
    _, usage = host.ask(second)
    details = usage["prompt_tokens_details"]
    assert details["cached_tokens"] == num_full * BLOCK
    assert details["cached_tokens_by_tier"] == {"device": 32, "host": num_full * BLOCK - 32}
    command = [sys.executable, "-m", "baton.cli", "top", "--once", "--interval", "0.1", "--url", host.router.url]
    shown = subprocess.run(
        command, capture_output=True, text=True, timeout=HANG_S, env={**os.environ, "COLUMNS": "160"}
    )
    assert "store store 2 workers" in shown.stdout, shown.stderr

    # nobody waits for a store that stands still
    os.kill(host.store.process.pid, signal.SIGSTOP)  # type: ignore[union-attr]
    third = [*second, *prompt_of(3, 50)]
    host.ask(third)
    os.kill(host.store.process.pid, signal.SIGCONT)  # type: ignore[union-attr]
    host.wait_seen()

    # what a killed store had on disk the next one finds; the memory was mapped by its workers meanwhile
    host.wait_stored(num_full)
    host.store.kill()
    host.ask([*second, *prompt_of(4, 20)])
    host.start_store()
    host.store.wait_ready()
    host.restart("prefill")
    _, usage = host.ask(second)
    assert usage["prompt_tokens_details"]["cached_tokens_by_tier"]["host"] >= num_full * BLOCK
    assert host.store.metrics()['kv_store_lookups_total{result="disk"}'] >= num_full
    assert_quiet(*host.workers.values())
    eventually(lambda: host.store.metrics()["kv_store_loans"] == 0, "no block is lent")
