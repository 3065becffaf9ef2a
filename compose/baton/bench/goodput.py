"""Goodput: the share of requests inside stated targets, and the search for the highest rate at which enough are.

A request is good when its first token came within the TTFT target and the 99th percentile of its own gaps lies within the ITL
target. One that failed is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from baton.bench.completion_stream import Outcome


@dataclass(frozen=True, slots=True)
class Targets:
    """What is promised to each request."""

    ttft_ms: float = 500.0
    itl_ms: float = 30.0

    def __str__(self) -> str:
        return f"TTFT <= {self.ttft_ms:g} ms, p99 gap <= {self.itl_ms:g} ms"

    def holds(self, outcome: Outcome) -> bool:
        """Say whether a request was good."""
        if outcome.error is not None or not 1e3 * outcome.first_s <= self.ttft_ms:
            return False
        return not outcome.gaps_s or 1e3 * at(sorted(outcome.gaps_s), 0.99) <= self.itl_ms

    def share(self, outcomes: Sequence[Outcome]) -> float:
        """Return the share of good requests, failed ones among the others."""
        return sum(map(self.holds, outcomes)) / len(outcomes) if outcomes else math.nan


def at(ordered: Sequence[float], share: float) -> float:
    """Return a quantile of what is in order; NaN of nothing."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """For the highest rate with enough good requests, between two rates."""

    low: float
    high: float
    good_share: float = 0.9
    precision: float = 1.05
    """Ends where the least rate that failed is at most so many times the highest that held."""

    def next_rate(self, shares: Mapping[float, float]) -> float | None:
        """Return the rate to try, given the shares at those tried; None at the end."""
        held, failed = self.held(shares), self.failed(shares)
        if self.low not in shares:
            return self.low
        if held is None:
            return None
        near = failed is not None and failed / held <= self.precision
        rate = self.high if failed is None else float(f"{math.sqrt(failed * held):.3g}")  # to be given again by hand
        return None if near or rate in shares else rate

    def held(self, shares: Mapping[float, float]) -> float | None:
        """Return the highest rate that held, with none below it that failed."""
        failed = self.failed(shares)
        return max(
            (r for r, s in shares.items() if s >= self.good_share and (failed is None or r < failed)), default=None
        )

    def failed(self, shares: Mapping[float, float]) -> float | None:
        """Return the least rate that failed."""
        return min((r for r, s in shares.items() if s < self.good_share), default=None)
