"""Baton's processes for tests: started as users start them, on free ports of the loopback, ended for certain."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec

from baton.messages import WorkerInfo

T = TypeVar("T")
HANG_S = 600.0
"""Only what hangs takes this long, however busy the machine is."""


def eventually(probe: Callable[[], T], what: str, timeout_s: float = HANG_S) -> T:
    """Return the probe's first true value.

    Raises:
        AssertionError: it stays false to the end.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = probe()
        if value:
            return value
        assert time.monotonic() < deadline, f"after {timeout_s:.0f} s still not: {what}"
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass
class BatonProcess:
    """One `baton ...` command."""

    arguments: Sequence[str]
    log_file: Path
    port: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> BatonProcess:
        command = [sys.executable, "-m", "baton.cli", *self.arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **self.environment}
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def wait_ready(self, path: str = "/ready") -> None:
        def is_ready() -> bool:
            assert self.is_running, f"{self.arguments} ended:\n{self.log()}"
            try:
                return httpx.get(self.url + path, timeout=60).status_code == 200
            except httpx.HTTPError:
                return False

        try:
            eventually(is_ready, f"{self.arguments[0]} is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None

    def info(self) -> WorkerInfo:
        return msgspec.json.decode(httpx.get(f"{self.url}/info", timeout=60).content, type=WorkerInfo)

    def seen(self) -> list[dict[str, Any]]:
        """Return the workers as a router sees them."""
        workers: list[dict[str, Any]] = httpx.get(f"{self.url}/debug/workers", timeout=60).json()["workers"]
        return workers

    def engine_pid(self) -> int:
        """Process id of a worker's engine process."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def metrics(self) -> dict[str, float]:
        """Each series of /metrics, as `name{labels without model_name}`."""
        values: dict[str, float] = {}
        for line in httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines():
            if line.startswith("#") or not line.startswith("baton:"):
                continue
            name, value = line.rsplit(" ", 1)
            name = re.sub(r'model_name="[^"]*",?', "", name).replace("{}", "").replace(",}", "}")
            values[name.removeprefix("baton:")] = float(value)
        return values

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, as the kernel does when memory runs out: the face, and with it the engine process."""
        if self.is_running:
            engine = None
            with contextlib.suppress(IndexError, OSError):
                engine = self.engine_pid()
            self.signal(signal.SIGKILL)
            if engine is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(engine, signal.SIGKILL)
            assert self.process is not None
            self.process.wait(HANG_S)

    def stop(self, timeout_s: float = HANG_S) -> int:
        """SIGTERM; return the exit status."""
        assert self.process is not None
        if self.is_running:
            self.signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.arguments} did not end:\n{self.log()}") from None

    def log(self) -> str:
        return self.log_file.read_text()[-6000:] if self.log_file.exists() else ""


def start_worker(leg: str, model: Path | str, folder: Path, name: str, *flags: str) -> BatonProcess:
    """Start a worker with a small cache; does not wait for it."""
    port, control = free_ports(2)
    arguments = [leg, "--model", str(model), "--port", str(port), "--control-port", str(control)]
    arguments += ["--worker-id", name, "--kv-cache-memory-bytes", str(48 * 2**20), *flags]
    return BatonProcess(arguments, folder / f"{name}.log", port).start()


def is_quiet(worker: BatonProcess) -> bool:
    """Whether a worker holds nothing: every block free or cached, no lease, nothing stranded or queued."""
    values = worker.metrics()
    blocks = {state: values[f'kv_blocks{{state="{state}"}}'] for state in ("free", "cached", "held", "total")}
    return (
        blocks["held"] == 0
        and blocks["free"] + blocks["cached"] == blocks["total"]
        and values["kv_stranded_bytes"] == 0
        and values["kv_leases_held"] == 0
        and values["num_requests_running"] == 0
        and values["num_requests_waiting"] == 0
    )


def assert_quiet(*workers: BatonProcess, timeout_s: float = HANG_S) -> None:
    """Wait until the workers hold nothing."""
    for worker in workers:
        try:
            eventually(lambda worker=worker: is_quiet(worker), "all blocks are back", timeout_s)  # type: ignore[misc]
        except AssertionError:
            raise AssertionError(f"{worker.arguments[:1]} holds something: {worker.metrics()}") from None
