"""Recorded traffic as a load: JSON lines of timestamp (ms), input_length, output_length and, for shared prefixes, hash_ids."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from baton.bench.loads import Arrival, Load, random_tokens
from baton.errors import ConfigError

TRACE_BLOCK_LEN = 512
"""Tokens that one hash of a trace stands for, as in the Mooncake traces."""


@dataclass(frozen=True, slots=True)
class Row:
    """One recorded request."""

    at_s: float
    input_len: int
    output_len: int
    hash_ids: tuple[int, ...] = ()


def read_rows(file: Path) -> Iterator[Row]:
    """Read a trace.

    Raises:
        ConfigError: it is none.
    """
    try:
        with file.open() as lines:
            for line in lines:
                if line.strip():
                    row = json.loads(line)
                    lengths = int(row["input_length"]), int(row["output_length"])
                    yield Row(float(row["timestamp"]) / 1e3, *lengths, tuple(row.get("hash_ids") or ()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"trace={str(file)!r} cannot be read ({error!r}). It must have one JSON object a line with timestamp, "
            "input_length and output_length."
        ) from None


def read_trace(file: Path, count: int | None, *, speed: float, max_len: int, vocab: int, seed: str) -> Load:
    """Read the first `count` requests of a trace that have at most `max_len` tokens in and out.

    `speed` 2 sends twice as fast as recorded.

    Raises:
        ConfigError: not such a trace, or none of its requests fits.
    """
    arrivals: list[Arrival] = []
    for row in read_rows(file):
        if len(arrivals) == count:
            break
        if row.input_len + row.output_len <= max_len and row.output_len > 0:
            arrivals.append(Arrival.single(row.at_s / speed, _prompt(row, vocab, seed), row.output_len))
    if not arrivals:
        raise ConfigError(f"trace={str(file)!r} has no request of at most {max_len} tokens in and out.")
    first = arrivals[0].at_s
    return Load(f"trace x {speed:g}", [Arrival(arrival.at_s - first, arrival.turns) for arrival in arrivals])


def _prompt(row: Row, vocab: int, seed: str) -> list[int]:
    """Make tokens such that equal hashes give equal blocks."""
    prompt: list[int] = []
    hashes = iter(row.hash_ids)
    while len(prompt) < row.input_len:
        which = next(hashes, (row.at_s, len(prompt)))
        prompt += random_tokens(random.Random(f"{seed}/{which}"), TRACE_BLOCK_LEN, vocab)
    return prompt[: row.input_len]
