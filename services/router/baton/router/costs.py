"""Rates that the router learns from workers' reports: what a step and a transfer cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from statistics import fmean

from baton.router.policy import Candidate, Link

_KEEP = 0.98
"""Weight of the past in a moving mean: about fifty reports."""


class StepModel:
    """A worker's decode step as a line: so many ms, and so many more with each sequence in the batch."""

    __slots__ = ("_cov", "_mean_ms", "_mean_n", "_num", "_var")

    def __init__(self) -> None:
        self._num = 0
        self._mean_n = self._mean_ms = self._var = self._cov = 0.0

    def observe(self, num_running: int, step_ms: float) -> None:
        """Take a worker's report; reports of an idle worker say nothing."""
        if step_ms <= 0 or num_running <= 0:
            return
        keep = min(_KEEP, self._num / (self._num + 1))
        self._num += 1
        dn, dms = num_running - self._mean_n, step_ms - self._mean_ms
        self._mean_n += (1 - keep) * dn
        self._mean_ms += (1 - keep) * dms
        self._var = keep * (self._var + (1 - keep) * dn * dn)
        self._cov = keep * (self._cov + (1 - keep) * dn * dms)

    def predict(self, num_running: int) -> float:
        """Give the ms of a step with so many sequences; 0 before the first report."""
        if self._num == 0:
            return 0.0
        slope = self._cov / self._var if self._var > 0.5 else 0.0
        # where nothing is learned of it yet, a sequence more costs a little: else all would go to one worker
        slope = max(slope, 0.002 * self._mean_ms)
        return max(self._mean_ms + slope * (num_running - self._mean_n), 0.1 * self._mean_ms)


class LinkModel:
    """What transfers of one pair of workers add after the prefill, per token and fixed."""

    __slots__ = ("_exposed_ms", "_tokens")

    def __init__(self) -> None:
        prior = Link()
        self._tokens = 1000.0
        self._exposed_ms = prior.ms_per_token * self._tokens

    def observe(self, num_tokens: int, exposed_seconds: float) -> None:
        """Take one transfer's report."""
        exposed_ms = max(1000 * exposed_seconds - Link().fixed_ms, 0.0)
        self._tokens = 0.9 * self._tokens + 0.1 * num_tokens
        self._exposed_ms = 0.9 * self._exposed_ms + 0.1 * exposed_ms

    @property
    def link(self) -> Link:
        """Give the present estimate."""
        return Link(ms_per_token=self._exposed_ms / max(self._tokens, 1.0))


def like_peers(candidates: Sequence[Candidate], default_prefill_rate: float) -> list[Candidate]:
    """Take a worker that has not reported yet for one like the others; a better guess would draw all requests to it."""
    rates = [c.prefill_rate for c in candidates if c.prefill_rate]
    rate = fmean(rates) if rates else default_prefill_rate
    steps = [c.step_ms for c in candidates if c.can_decode and c.step_ms]
    step_ms = fmean(steps) if steps else 0.0
    return [
        dataclasses.replace(c, prefill_rate=c.prefill_rate or rate, step_ms=c.step_ms or step_ms) for c in candidates
    ]
