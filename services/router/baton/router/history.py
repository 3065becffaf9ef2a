"""History: what went through this router in the last 15 minutes, in points of 5 s. For /debug/history.

Counters are read every 5 s and compared with what they were: requests and tokens pay nothing for it.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from baton.histograms import Buckets, between, quantile
from baton.metrics import RouterMetrics
from baton.router.journal import Journal
from baton.router.repeated import Repeated

INTERVAL_S = 5.0
NUM_POINTS = 180
"""Fifteen minutes."""
_MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What the counters were at one time."""

    at: float
    """Unix time; `clock` is monotonic."""
    clock: float
    requests: float
    """Answers that ended, however."""
    tokens: float
    errors: float
    refusals: float
    replays: float
    first_tokens: Buckets
    gaps: Buckets

    @classmethod
    def of(cls, metrics: RouterMetrics, journal: Journal) -> Sample:
        """Read all of it now."""
        answers = metrics.e2e_request_latency_seconds.buckets()
        return cls(
            at=time.time(),
            clock=time.monotonic(),
            requests=answers[-1][1],
            tokens=metrics.generation_tokens.value,
            errors=metrics.request_success.value("error"),
            refusals=journal.num_refused,
            replays=metrics.replays.total,
            first_tokens=metrics.time_to_first_token_seconds.buckets(),
            gaps=metrics.inter_token_latency_seconds.buckets(),
        )

    def since(self, old: Sample) -> dict[str, float | None]:
        """Say what came since an older sample: rates, counts, and percentiles in ms, None where nothing was measured."""
        seconds = max(self.clock - old.clock, 1e-3)
        first_tokens, gaps = between(old.first_tokens, self.first_tokens), between(old.gaps, self.gaps)
        return {
            "at": round(self.at, 1),
            "requests_per_s": round((self.requests - old.requests) / seconds, 3),
            "tokens_per_s": round((self.tokens - old.tokens) / seconds, 2),
            "first_token_p50_ms": _ms(first_tokens, 0.5),
            "first_token_p99_ms": _ms(first_tokens, 0.99),
            "gap_p50_ms": _ms(gaps, 0.5),
            "gap_p99_ms": _ms(gaps, 0.99),
            "errors": self.errors - old.errors,
            "refusals": self.refusals - old.refusals,
            "replays": self.replays - old.replays,
        }


class History:
    """Samples of the last 15 minutes; memory is bounded by their number."""

    def __init__(self, metrics: RouterMetrics, journal: Journal) -> None:
        self._metrics = metrics
        self._journal = journal
        self._samples = deque([Sample.of(metrics, journal)], maxlen=NUM_POINTS + 1)
        self._points: deque[dict[str, float | None]] = deque(maxlen=NUM_POINTS)
        sampling = Repeated(INTERVAL_S, self.sample)
        self.start, self.close = sampling.start, sampling.close

    def sample(self) -> None:
        """Add one point: what came since the last one."""
        now = Sample.of(self._metrics, self._journal)
        self._points.append(now.since(self._samples[-1]))
        self._samples.append(now)

    def describe(self) -> dict[str, Any]:
        """Return it as JSON: the points as one list a value, and what came in the last minute and in all of the time."""
        now = Sample.of(self._metrics, self._journal)
        minute = next((s for s in self._samples if now.clock - s.clock <= _MINUTE_S), self._samples[-1])
        names = list(now.since(now))
        return {
            "now": now.at,
            "interval_s": INTERVAL_S,
            "num_points": NUM_POINTS,
            "points": {name: [point[name] for point in self._points] for name in names},
            "minute": {"seconds": round(now.clock - minute.clock, 1), **now.since(minute)},
            "all": {"seconds": round(now.clock - self._samples[0].clock, 1), **now.since(self._samples[0])},
        }


def _ms(buckets: Buckets, q: float) -> float | None:
    value = quantile(buckets, q)
    return None if value is None else round(1000 * value, 3)
