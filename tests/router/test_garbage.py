"""Requests that have ended leave nothing that only a collection of cycles frees: it stops all streams while it looks."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import httpx
import pytest

from .cluster import cluster

WORKERS: list[dict[str, Any]] = [{"worker_id": "p0", "legs": ["prefill"]}, {"worker_id": "d0"}]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("route", ["completions", "chat/completions"])
def test_requests_that_ended_are_gone_without_a_collection(tmp_path: Path, stream: bool, route: str) -> None:
    asked = {"prompt": "x" * 40} if route == "completions" else {"messages": [{"role": "user", "content": "x" * 40}]}
    body = asked | {"max_tokens": 8, "stream": stream, "ignore_eos": True}
    with cluster(tmp_path, WORKERS, path="remote") as made, httpx.Client() as client:

        def ask() -> None:
            assert client.post(f"{made.url}/v1/{route}", json=body).status_code == 200

        ask()
        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                ask()
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            ours = [type(each).__name__ for each in gc.garbage if type(each).__module__.startswith("baton.")]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert len(ours) < 10, ours  # of the last request, which may be on its way out still
