"""`baton bench serve`: an open loop of requests against an OpenAI-compatible server, with the measures of `vllm bench serve`.

Requests leave at their times whether or not earlier ones have been answered (Poisson arrivals, or a trace's own times), so a
server that falls behind is seen to; `max_concurrency` closes the loop. Every answer is streamed and counted: a request whose
tokens are not exactly those asked for is a failure, and one failure makes the command end with 1. No torch here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from baton.bench.loads import Arrival, Load
from baton.bench.serve_result import Outcome, Result
from baton.errors import ConfigError
from baton.own_http import client_of
from baton.progress import LongBar


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Whom to ask, and how."""

    url: str
    api_key: str | None = None
    model: str | None = None
    """None: the first that the server names."""
    max_concurrency: int | None = None
    """Most requests at once; None: as they come."""

    def client(self) -> httpx.AsyncClient:
        """Open connections to it."""
        headers = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        url = self.url.rstrip("/").removesuffix("/v1")
        return client_of(httpx.AsyncClient, url, base_url=url, headers=headers, limits=limits, timeout=600.0)


async def drive(server: Server, model: str, load: Load) -> Result:
    """Send every request at its time, with a bar of those that have ended."""
    gate = contextlib.nullcontext() if server.max_concurrency is None else asyncio.Semaphore(server.max_concurrency)
    with LongBar(total=len(load.arrivals), desc=load.name, unit="request", leave=False) as bar:
        async with server.client() as client:
            start = time.perf_counter()

            async def send(arrival: Arrival) -> Outcome:
                await asyncio.sleep(max(0.0, arrival.at_s - (time.perf_counter() - start)))
                async with gate:
                    outcome = await _ask(client, model, arrival, start)
                bar.update()
                return outcome

            outcomes = await asyncio.gather(*(send(arrival) for arrival in load.arrivals))
            return Result(load, outcomes, time.perf_counter() - start)


async def _ask(client: httpx.AsyncClient, model: str, arrival: Arrival, start: float) -> Outcome:
    body = {
        "model": model,
        "prompt": arrival.prompt,
        "max_tokens": arrival.output_len,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sent_at = time.perf_counter()
    outcome = Outcome(sent_s=sent_at - start)
    try:
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                outcome.error = f"{answer.status_code}: {(await answer.aread())[:200]!r}"
                return outcome
            await _read(answer, outcome, sent_at)
    except httpx.HTTPError as error:
        outcome.error = repr(error)
        return outcome
    if outcome.num_tokens != arrival.output_len:
        outcome.error = outcome.error or f"{outcome.num_tokens} tokens came, {arrival.output_len} were asked for"
    return outcome


async def _read(answer: httpx.Response, outcome: Outcome, sent_at: float) -> None:
    times: list[float] = []
    async for line in answer.aiter_lines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event = json.loads(line[6:])
        if "error" in event:
            outcome.error = str(event["error"])
            return
        if usage := event.get("usage"):
            outcome.num_tokens = usage["completion_tokens"]
            outcome.num_cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        if event["choices"]:
            times.append(time.perf_counter())
    outcome.total_s = time.perf_counter() - sent_at
    if times:
        outcome.first_s = times[0] - sent_at
        outcome.gaps_s = [later - earlier for earlier, later in pairwise(times)]


async def run(server: Server, model: str, loads: Sequence[Load], *, seed: str) -> list[Result]:
    """Run each load against a server, and print a block for each."""
    print(f"{model} at {server.url}\nprompts of --seed {seed}", flush=True)
    results = []
    for load in loads:
        results.append(await drive(server, model, load))
        print("\n" + "\n".join(results[-1].lines()), flush=True)
    return results


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where results go."""

    folder: Path = Path()
    name: str | None = None
    """None: made of rate, model and time."""
    detailed: bool = False

    def save(self, results: Sequence[Result], server: Server, model: str, seed: str) -> None:
        """Write a file a rate, each as `vllm bench serve --save-result` does."""
        now = datetime.now()
        self.folder.mkdir(parents=True, exist_ok=True)
        for i, result in enumerate(results):
            whole = result.vllm_form(model, max_concurrency=server.max_concurrency, seed=seed, now=now)
            rate = whole["request_rate"]
            name = self.name or f"baton-{rate}qps-{model.split('/')[-1]}-{whole['date']}.json"
            if self.name and len(results) > 1:
                name = f"{Path(name).stem}-{i}{Path(name).suffix}"
            whole |= result.details() if self.detailed else {}
            (self.folder / name).write_text(json.dumps(whole))
            print(f"wrote {self.folder / name}", file=sys.stderr)


async def served_model(server: Server) -> tuple[str, int]:
    """Ask a server which model it serves, and its longest context.

    Raises:
        ConfigError: nobody answers there, or not that model.
    """
    try:
        async with server.client() as client:
            answer = await client.get("/v1/models", timeout=10.0)
            cards: list[dict[str, Any]] = answer.raise_for_status().json()["data"]
            card = next(card for card in cards if server.model in (None, card["id"]))
    except StopIteration:
        names = ", ".join(card["id"] for card in cards)
        raise ConfigError(f"model={server.model!r} is not served at {server.url}. It has {names}.") from None
    except (httpx.HTTPError, LookupError, ValueError) as error:
        url = server.url
        raise ConfigError(f"url={url!r}: no server answers there ({error!r}). Start one with `baton up`.") from None
    return card["id"], card.get("max_model_len") or 4096
