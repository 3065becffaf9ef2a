"""The end of a router process: whatever is open ends with a whole answer or one clear error, and nothing is cut."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.processes import HANG_S, BatonProcess, eventually, free_ports

from .cluster import FakeProcess
from .tokenizer_folder import make_tokenizer_folder

LONG: dict[str, Any] = {"model": "tiny", "prompt": [20, 30, 40], "max_tokens": 2000, "ignore_eos": True}


@pytest.fixture
def worker() -> Iterator[FakeProcess]:
    made = FakeProcess(worker_id="d0", step_ms=50.0).start()
    yield made
    made.stop()


def start(worker: FakeProcess, folder: Path, *flags: str) -> BatonProcess:
    """Start a router process, and wait until it serves."""
    (port,) = free_ports(1)
    model = make_tokenizer_folder(folder / "tiny")
    arguments = ["router", "--model", str(model), "--worker", worker.settings.control, "--port", str(port), *flags]
    process = BatonProcess(arguments, folder / "router.log", port).start()
    process.wait_ready()
    return process


class Asking(threading.Thread):
    """A client that waits for its answer."""

    def __init__(self, url: str, *, stream: bool) -> None:
        super().__init__()
        self._url = url
        self._stream = stream
        self.status = 0
        self.lines: list[str] = []
        self.start()

    def run(self) -> None:
        body = {**LONG, "stream": self._stream}
        with httpx.stream("POST", f"{self._url}/v1/completions", json=body, timeout=HANG_S) as answer:
            self.status = answer.status_code
            self.lines.extend(line for line in answer.iter_lines() if line)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_answers_longer_than_the_drain_end_with_one_error_each(
    worker: FakeProcess, tmp_path: Path, number: signal.Signals
) -> None:
    process = start(worker, tmp_path, "--drain-s", "0.5", "--body-timeout-s", "600")
    stream, body = Asking(process.url, stream=True), Asking(process.url, stream=False)
    unfinished = socket.create_connection(("127.0.0.1", process.port))
    try:
        unfinished.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{")
        eventually(lambda: process.metrics()["num_requests_running"] == 2, "both run")
        process.signal(number)
        stream.join(HANG_S)
        body.join(HANG_S)
        assert stream.status == 200
        assert stream.lines[0].startswith("data: {")
        errors = [json.loads(line[6:])["error"] for line in stream.lines if '"error"' in line]
        assert len(errors) == 1
        assert stream.lines[-1].startswith('data: {"error"')
        assert body.status == 503
        assert json.loads(body.lines[0])["error"] == errors[0]
        assert "shutting down" in errors[0]["message"]
        unfinished.settimeout(HANG_S)
        assert unfinished.recv(65536).startswith(b"HTTP/1.1 503 ")
        assert process.process is not None
        process.process.wait(HANG_S)
        assert "Traceback" not in process.log()
    finally:
        unfinished.close()
        process.kill()


def test_a_router_under_nohup_does_not_hear_the_hang_up(worker: FakeProcess, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which a child inherits
    try:
        process = start(worker, tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    try:
        process.signal(signal.SIGHUP)
        assert httpx.post(f"{process.url}/v1/completions", json={**LONG, "max_tokens": 2}).status_code == 200
    finally:
        process.kill()


def test_a_router_that_everybody_might_use_does_not_start(worker: FakeProcess, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    model = make_tokenizer_folder(tmp_path / "tiny")
    flags = ["--model", str(model), "--worker", worker.settings.control, "--port", str(port), "--host", "0.0.0.0"]
    process = BatonProcess(["router", *flags], tmp_path / "refused.log", port).start()
    assert process.process is not None
    assert process.process.wait(HANG_S) == 2
    assert "--allow-anonymous" in process.log()
    process = BatonProcess(["router", *flags, "--api-key", "none"], tmp_path / "router.log", port).start()
    try:
        process.wait_ready()
        assert httpx.get(f"{process.url}/v1/models").status_code == 401
        assert httpx.get(f"{process.url}/v1/models", headers={"authorization": "Bearer none"}).status_code == 200
        assert "api_key_short" in process.log()
    finally:
        process.kill()
