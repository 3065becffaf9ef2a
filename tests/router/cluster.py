"""A router on a real socket, and fake workers as real processes, for the router's tests."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import openai
from tests.fake_worker import FakeSettings
from tests.processes import HANG_S

from baton.registry import Registry
from baton.router.config import RouterConfig
from baton.router.http_config import HttpConfig
from baton.router.router_state import RouterState
from baton.router.server import make_server

from .tokenizer_folder import make_tokenizer_folder

VOCAB = 400
# printable ASCII in the test tokenizer: 5 special tokens stand before the 256 bytes, of which these come first
FIRST_WORD, LAST_WORD = 5, 5 + 94


def free_port() -> int:
    """Find a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class FakeProcess:
    """A fake worker in a process of its own."""

    def __init__(self, **settings: Any) -> None:
        defaults = {
            "model_name": "tiny",
            "vocab_size": VOCAB,
            "first_word": FIRST_WORD,
            "last_word": LAST_WORD,
            "control": f"tcp://127.0.0.1:{free_port()}",
            "max_model_len": 2048,
            "step_ms": 2.0,
            "prefill_rate": 0.0,
        }
        self.settings = msgspec.convert(defaults | settings, FakeSettings)
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> FakeProcess:
        """Start it; give it when it listens."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fake_worker", msgspec.json.encode(self.settings).decode()],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip()
        return self

    def kill(self) -> None:
        """End it without warning."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self) -> None:
        """Ask it to drain and end."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(HANG_S)

    def stop(self) -> None:
        """End it, however."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()


class Cluster:
    """A router in a thread, and its workers."""

    def __init__(self, config: RouterConfig, registry: Registry | None = None, http: HttpConfig | None = None) -> None:
        self.config = dataclasses.replace(config, port=free_port())
        self.url = f"http://127.0.0.1:{self.config.port}"
        self.workers: dict[str, FakeProcess] = {}
        self._server = make_server(self.config, registry, http)
        self._thread = threading.Thread(target=self._server.run)

    @property
    def state(self) -> RouterState:
        """The router's own objects; read only, they live on another thread."""
        return self._server.router

    @property
    def connections(self) -> set[Any]:
        """The server's side of each open connection."""
        connections: set[Any] = self._server.server_state.connections
        return connections

    def ask(self, question: Callable[[RouterState], Any], *, until: bool = False) -> Any:
        """Ask the router on its own thread, between two of its events; with `until` again and again until it holds."""

        async def call() -> Any:
            while not (answer := question(self.state)) and until:
                await asyncio.sleep(0.001)
            return answer

        return asyncio.run_coroutine_threadsafe(call(), self.state.dispatcher._loop).result(HANG_S)

    def start(self) -> None:
        """Start the router; workers are waited for by `wait_for_workers`."""
        self._thread.start()
        deadline = time.monotonic() + HANG_S
        while not self._server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self._server.started

    def wait_for_workers(self, count: int) -> None:
        """Wait until the router sees them."""
        wait_until(lambda: len(self.state.pool.workers) == count)

    def stop(self) -> None:
        """End all of it."""
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(HANG_S)
        for worker in self.workers.values():
            worker.stop()

    def client(self, **options: Any) -> openai.OpenAI:
        """The real SDK."""
        defaults: dict[str, Any] = {"api_key": "unused", "max_retries": 0, "timeout": HANG_S}
        return openai.OpenAI(base_url=f"{self.url}/v1", **(defaults | options))

    def async_client(self) -> openai.AsyncOpenAI:
        """The real SDK, for many streams."""
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=HANG_S)


@contextlib.contextmanager
def cluster(
    folder: Path,
    workers: list[dict[str, Any]],
    *,
    registry: Registry | None = None,
    is_static: bool = True,
    num_served: int | None = None,
    chat_template: str | None = None,
    http: HttpConfig | None = None,
    **config: Any,
) -> Iterator[Cluster]:
    """Start a router and its workers; with `is_static` the router is told their endpoints.

    `num_served` of them are waited for, or all.
    """
    options = {} if chat_template is None else {"chat_template": chat_template}
    model = make_tokenizer_folder(folder / "tiny", **options)
    started = [FakeProcess(**settings).start() for settings in workers]
    endpoints = tuple(worker.settings.control for worker in started) if is_static else ()
    # fake workers compute all prompts side by side, so queues that are predicted from the rates they tell are none
    config = {"max_queue_s": 0.0} | config
    made = Cluster(RouterConfig(model=str(model), worker=endpoints, **config), registry, http)
    made.workers = {worker.settings.worker_id: worker for worker in started}
    try:
        made.start()
        if is_static:
            made.wait_for_workers(len(workers) if num_served is None else num_served)
        yield made
    finally:
        made.stop()


def wait_until(holds: Any, timeout_s: float = HANG_S) -> None:
    """Wait for something that another thread or process brings about."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)
