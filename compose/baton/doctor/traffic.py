"""Requests to plan for: times and lengths, drawn or from a trace."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path

from baton.bench.traces import read_rows
from baton.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Request:
    """When it comes, and its lengths in tokens."""

    at_s: float
    input_len: int
    output_len: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests in the order of their times."""

    name: str
    requests: Sequence[Request]

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.requests) / max(self.requests[-1].at_s, 1e-9)

    @property
    def input_len(self) -> float:
        """Tokens of a prompt, in the mean."""
        return sum(request.input_len for request in self.requests) / len(self.requests)

    @property
    def output_len(self) -> float:
        """Tokens of an answer, in the mean."""
        return sum(request.output_len for request in self.requests) / len(self.requests)

    def at_rate(self, rate: float, least_s: float = 0.0) -> Traffic:
        """Return the same requests at another rate, again and again until they last so long; of many that take longer a part."""
        factor, period_s = self.rate / rate, self.requests[-1].at_s + 1 / self.rate
        requests: list[Request] = []
        again = ((turn, request) for turn in count() for request in self.requests)
        for turn, request in again:
            at_s = factor * (request.at_s + turn * period_s)
            if at_s > least_s and len(requests) >= _LEAST:
                break
            requests.append(replace(request, at_s=at_s))
        return Traffic(self.name, requests)


_LEAST, _DRAWN = 100, 1000
"""Requests that are simulated at least, and that differ from one another."""


def drawn(rate: float, input_len: tuple[int, int], output_len: tuple[int, int]) -> Traffic:
    """Draw a Poisson process, the same each time."""
    rng, at_s, requests = random.Random(0), 0.0, []
    for _ in range(_DRAWN):
        at_s += rng.expovariate(rate)
        requests.append(Request(at_s, rng.randint(*input_len), rng.randint(*output_len)))
    return Traffic(f"{rate:g} requests/s, prompts {_span(input_len)}, answers {_span(output_len)}", requests)


def recorded(file: Path, max_len: int, *, rate: float | None = None, most: int = 1000) -> Traffic:
    """Read the first requests of a trace, at its own rate or at another.

    Raises:
        ConfigError: it is none, or has no two requests that fit.
    """
    rows = list(islice((row for row in read_rows(file) if row.input_len + row.output_len <= max_len), most))
    if len(rows) < 2 or rows[-1].at_s <= rows[0].at_s:
        raise ConfigError(f"trace={str(file)!r} has no two requests, at different times, of at most {max_len} tokens.")
    first = rows[0].at_s
    requests = [Request(row.at_s - first, max(1, row.input_len), max(1, row.output_len)) for row in rows]
    traffic = Traffic(f"{file.name}, its first {len(rows)} requests that fit", requests)
    if rate is not None:
        traffic = Traffic(
            f"{traffic.name}, at {rate:g} requests/s",
            traffic.at_rate(rate, traffic.requests[-1].at_s * traffic.rate / rate).requests,
        )
    return traffic


def _span(lens: tuple[int, int]) -> str:
    return f"{lens[0]}..{lens[1]}" if lens[0] != lens[1] else str(lens[0])
