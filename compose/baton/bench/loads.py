"""What `baton bench serve` sends: requests of a Poisson process, or of a trace, with prompts that no server has seen."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.errors import ConfigError

TRACE_BLOCK_LEN = 512
"""Tokens that one hash of a trace stands for, as in the Mooncake traces."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request to send."""

    at_s: float
    prompt: list[int]
    output_len: int


@dataclass(frozen=True, slots=True)
class Load:
    """Requests with their times, and what to call them."""

    name: str
    arrivals: list[Arrival]
    rate: float = math.inf
    """Requests a second; infinite: all at once, or a trace's own times."""


def poisson(
    rate: float, count: int, *, input_len: tuple[int, int], output_len: tuple[int, int], vocab: int, seed: str
) -> Load:
    """Draw `count` requests of a Poisson process; an infinite rate sends all at once."""
    rng = random.Random(seed)
    at_s, arrivals = 0.0, []
    for _ in range(count):
        at_s += 0.0 if math.isinf(rate) else rng.expovariate(rate)
        prompt = [rng.randint(10, vocab - 1) for _ in range(rng.randint(*input_len))]
        arrivals.append(Arrival(at_s, prompt, rng.randint(*output_len)))
    return Load("all at once" if math.isinf(rate) else f"{rate:g} requests/s", arrivals, rate)


def read_trace(file: Path, count: int, *, speed: float, max_len: int, vocab: int, seed: str) -> Load:
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
            prompt = _trace_prompt(row, vocab, seed)
            arrivals.append(Arrival(row["timestamp"] / 1e3 / speed, prompt, row["output_length"]))
    if not arrivals:
        raise ConfigError(f"trace={str(file)!r} has no request of at most {max_len} tokens in and out.")
    first = arrivals[0].at_s
    arrivals = [Arrival(arrival.at_s - first, arrival.prompt, arrival.output_len) for arrival in arrivals]
    return Load(f"trace x {speed:g}", arrivals)


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


def _trace_prompt(row: dict[str, Any], vocab: int, seed: str) -> list[int]:
    """Make tokens such that equal hashes give equal blocks."""
    prompt: list[int] = []
    hashes = iter(row["hash_ids"])
    while len(prompt) < row["input_length"]:
        rng = random.Random(f"{seed}/{next(hashes, (row['timestamp'], len(prompt)))}")
        prompt += [rng.randint(10, vocab - 1) for _ in range(TRACE_BLOCK_LEN)]
    return prompt[: row["input_length"]]
