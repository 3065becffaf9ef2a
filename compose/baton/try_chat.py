"""Send one streamed chat request, as a user would, and print the answer, its route and its times."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import httpx

QUESTION = "What is the capital of France? Answer in one sentence."
MESSAGES = (
    ("system", "You are a helpful assistant."),
    ("user", "What is the capital of Italy?"),
    ("assistant", "The capital of Italy is Rome."),
    ("user", "What is 12 + 30?"),
    ("assistant", "12 + 30 = 42."),
    ("user", QUESTION),
)
"""Long enough to fill some blocks of KV."""
MAX_TOKENS = 64
REPORT_S = 2.0
_MOVED = re.compile(r"^baton:kv_transfer_bytes_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


async def try_chat(client: httpx.AsyncClient, url: str, model: str, worker_urls: Sequence[str]) -> int:
    """Ask, and print; return 0 if an answer came whole."""
    moved_before = await _moved_nbytes(client, worker_urls)
    body = {
        "model": model,
        "messages": [{"role": role, "content": content} for role, content in MESSAGES],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    print(f"\nyou:    {QUESTION}", flush=True)
    began_at = time.monotonic()
    times: list[float] = []
    finish_reason: str | None = None
    usage: dict[str, Any] = {}
    headers = {"x-baton-explain": "1"}
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers, timeout=120) as answer:
        if answer.status_code != 200:
            print(f"\nbaton: {(await answer.aread()).decode()}", file=sys.stderr)
            return 1
        route = answer.headers.get("x-baton-route", "unknown")
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line[6:])
            if "error" in event:
                print(f"\nbaton: {event['error']}", file=sys.stderr)
                return 1
            usage = event.get("usage") or usage
            for choice in event.get("choices", ()):
                piece = choice.get("delta", {}).get("content")
                if piece:
                    # the name with the first piece, so that no worker's log line comes between
                    print(piece if times else f"{model}: {piece}", end="", flush=True)
                    times.append(time.monotonic())
                finish_reason = choice.get("finish_reason") or finish_reason
    ended_at = time.monotonic()
    print(f"\n\nroute:  {route}")
    print(_times(began_at, ended_at, times, usage), flush=True)
    moved = 0.0
    if "remote" in route:
        moved = await _moved_nbytes(client, worker_urls, above=moved_before) - moved_before
    print(f"KV:     {moved / 1024:.0f} KiB came from the prefill worker, every block verified\n", flush=True)
    return 0 if finish_reason and times else 1


async def _moved_nbytes(client: httpx.AsyncClient, worker_urls: Sequence[str], above: float = -1.0) -> float:
    """Add up what workers have fetched; workers report a moment later, so wait until it is above what it was."""
    deadline = time.monotonic() + REPORT_S
    while True:
        total = 0.0
        for url in worker_urls:
            text = (await client.get(f"{url}/metrics")).text
            total += sum(float(value) for value in _MOVED.findall(text))
        if total > above or time.monotonic() > deadline:
            return total
        await asyncio.sleep(0.05)


def _times(began_at: float, ended_at: float, times: list[float], usage: dict[str, Any]) -> str:
    if not times:
        return "times:  no token came"
    gaps = sorted(after - before for before, after in itertools.pairwise(times))
    between = f", {1e3 * gaps[len(gaps) // 2]:.1f} ms between pieces (median)" if gaps else ""
    return (
        f"times:  first token after {1e3 * (times[0] - began_at):.1f} ms{between}, "
        f"{usage.get('completion_tokens', len(times))} tokens after {usage.get('prompt_tokens', '?')} of prompt in {1e3 * (ended_at - began_at):.1f} ms"
    )
