"""`baton bench serve`: an open loop of requests against an OpenAI-compatible server, with the columns of `vllm bench serve`.

Requests leave at their times whether or not earlier ones have been answered (Poisson arrivals, or a trace's own times), so a
server that falls behind is seen to. Every answer is streamed and counted: a request whose tokens are not exactly those
asked for is a failure, and one failure makes the command end with 1.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from baton.bench.report import Report
from baton.errors import ConfigError
from baton.own_http import client_of

TRACE_BLOCK_LEN = 512
"""Tokens that one hash of a trace stands for, as in the Mooncake traces."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request to send."""

    at_s: float
    prompt: list[int]
    output_len: int


@dataclass(slots=True)
class Outcome:
    """What a client saw of one request."""

    first_s: float = math.nan
    gaps_s: list[float] = field(default_factory=list)
    total_s: float = math.nan
    num_tokens: int = 0
    error: str | None = None


def poisson(
    rate: float, count: int, *, input_len: tuple[int, int], output_len: tuple[int, int], vocab: int, seed: int
) -> list[Arrival]:
    """Draw `count` requests of a Poisson process; an infinite rate sends all at once."""
    rng = random.Random(seed)
    at_s, arrivals = 0.0, []
    for _ in range(count):
        at_s += 0.0 if math.isinf(rate) else rng.expovariate(rate)
        prompt = [rng.randint(10, vocab - 1) for _ in range(rng.randint(*input_len))]
        arrivals.append(Arrival(at_s, prompt, rng.randint(*output_len)))
    return arrivals


def read_trace(file: Path, count: int, *, speed: float, max_len: int, vocab: int) -> list[Arrival]:
    """Read a trace of JSON lines: timestamp (ms), input_length, output_length and, for shared prefixes, hash_ids.

    Requests longer than `max_len` tokens in and out are left out. `speed` 2 sends twice as fast as recorded.

    Raises:
        ConfigError: not such a trace, or none of its requests fits.
    """
    arrivals: list[Arrival] = []
    for row in _trace_rows(file):
        if len(arrivals) == count:
            break
        if row["input_length"] + row["output_length"] <= max_len and row["output_length"] > 0:
            prompt = _trace_prompt(row, vocab)
            arrivals.append(Arrival(row["timestamp"] / 1e3 / speed, prompt, row["output_length"]))
    if not arrivals:
        raise ConfigError(f"trace={str(file)!r} has no request of at most {max_len} tokens in and out.")
    first = arrivals[0].at_s
    return [Arrival(arrival.at_s - first, arrival.prompt, arrival.output_len) for arrival in arrivals]


def _trace_rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = file.read_text().splitlines()
        for line in lines:
            row = json.loads(line)
            yield {key: row[key] for key in ("timestamp", "input_length", "output_length")} | {
                "hash_ids": row.get("hash_ids", [])
            }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"trace={str(file)!r} cannot be read ({error!r}). It must have one JSON object a line with timestamp, "
            "input_length and output_length."
        ) from None


def _trace_prompt(row: dict[str, Any], vocab: int) -> list[int]:
    """Make tokens such that equal hashes give equal blocks."""
    prompt: list[int] = []
    hashes = iter(row["hash_ids"])
    while len(prompt) < row["input_length"]:
        rng = random.Random(next(hashes, f"{row['timestamp']}/{len(prompt)}"))
        prompt += [rng.randint(10, vocab - 1) for _ in range(TRACE_BLOCK_LEN)]
    return prompt[: row["input_length"]]


async def drive(
    url: str, model: str, arrivals: Sequence[Arrival], *, api_key: str | None
) -> tuple[list[Outcome], float]:
    """Send every request at its time; return the outcomes and the seconds until the last had ended."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    async with client_of(httpx.AsyncClient, url, base_url=url, headers=headers, limits=limits, timeout=600.0) as client:
        start = time.perf_counter()

        async def send(arrival: Arrival) -> Outcome:
            await asyncio.sleep(max(0.0, arrival.at_s - (time.perf_counter() - start)))
            return await _ask(client, model, arrival)

        outcomes = await asyncio.gather(*(send(arrival) for arrival in arrivals))
        return list(outcomes), time.perf_counter() - start


async def _ask(client: httpx.AsyncClient, model: str, arrival: Arrival) -> Outcome:
    body = {
        "model": model,
        "prompt": arrival.prompt,
        "max_tokens": arrival.output_len,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    outcome, sent_at = Outcome(), time.perf_counter()
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
        if event.get("usage"):
            outcome.num_tokens = event["usage"]["completion_tokens"]
        if event["choices"]:
            times.append(time.perf_counter())
    outcome.total_s = time.perf_counter() - sent_at
    if times:
        outcome.first_s = times[0] - sent_at
        outcome.gaps_s = [later - earlier for earlier, later in pairwise(times)]


def add_row(report: Report, name: str, arrivals: Sequence[Arrival], outcomes: Sequence[Outcome], seconds: float) -> int:
    """Add a run's row; return the number of failed requests."""
    good = [outcome for outcome in outcomes if outcome.error is None]
    failed = len(outcomes) - len(good)
    tokens_in = sum(len(arrival.prompt) for arrival in arrivals)
    tokens_out = sum(outcome.num_tokens for outcome in good)
    per_token = [(o.total_s - o.first_s) / (o.num_tokens - 1) for o in good if o.num_tokens > 1]
    report.add(
        rate=name,
        successful_requests=len(good),
        failed=failed,
        duration_s=seconds,
        input_tokens=tokens_in,
        generated_tokens=tokens_out,
        request_s=len(good) / seconds,
        output_tok_s=tokens_out / seconds,
        **_spread("ttft_ms", [o.first_s for o in good]),
        **_spread("tpot_ms", per_token),
        **_spread("itl_ms", [gap for o in good for gap in o.gaps_s]),
    )
    return failed


def _spread(name: str, seconds: list[float]) -> dict[str, float | None]:
    if not seconds:
        return {f"{which}_{name}": None for which in ("mean", "median", "p99")}
    ordered = sorted(seconds)
    return {
        f"mean_{name}": 1e3 * statistics.fmean(ordered),
        f"median_{name}": 1e3 * statistics.median(ordered),
        f"p99_{name}": 1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
    }


async def run(
    url: str, model: str, loads: Sequence[tuple[str, list[Arrival]]], *, api_key: str | None, json_file: Path | None
) -> int:
    """Run each load against a server, print one table, and return the number of failed requests."""
    report = Report(f"baton bench serve, {model} at {url}")
    failed = 0
    for name, arrivals in loads:
        outcomes, seconds = await drive(url, model, arrivals, api_key=api_key)
        failed += add_row(report, name, arrivals, outcomes, seconds)
        for error in sorted({outcome.error for outcome in outcomes if outcome.error})[:5]:
            print(f"failed: {error}")
    report.show(json_file)
    return failed


async def served_model(url: str, api_key: str | None) -> tuple[str, int]:
    """Ask a server which model it serves, and its longest context.

    Raises:
        ConfigError: nobody answers there.
    """
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        async with client_of(httpx.AsyncClient, url, base_url=url, headers=headers, timeout=10.0) as client:
            answer = await client.get("/v1/models")
            card = answer.raise_for_status().json()["data"][0]
    except (httpx.HTTPError, LookupError, ValueError) as error:
        raise ConfigError(f"url={url!r}: no server answers there ({error!r}). Start one with `baton up`.") from None
    return card["id"], card.get("max_model_len", 4096)
