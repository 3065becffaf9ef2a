"""What a Baton router tells of a run after its end: counts, and how much of each transfer was waited for. Others tell nothing."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from baton.bench.goodput import at

_COUNTED = {
    "replays_total": "replays",
    "admission_refusals_total": "refused",
    "kv_integrity_failures_total": "integrity failures",
    "route_decisions_total": "",
}
"""Series, and what they are called; those with no word are told by label."""
_SAMPLE = re.compile(r'^baton:(\w+)\{(?:.*,)?(\w+)="([^"]*)"\} (\S+)$', re.MULTILINE)
_LIMIT = 200
"""Requests that a router remembers in full."""


class RouterView:
    """One run, seen from the router."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._began_at = 0.0
        self._before: dict[str, int] = {}

    async def begin(self) -> None:
        """Remember what was counted before."""
        self._began_at = time.time()
        self._before = await self._counts()

    async def counted(self) -> dict[str, int]:
        """Return what was counted since."""
        return {name: count - self._before.get(name, 0) for name, count in (await self._counts()).items()}

    async def transfers(self) -> dict[str, float]:
        """Return what the last requests of the run say of their KV; nothing where none had a prefill worker."""
        try:
            answer = await self._client.get("/debug/requests", params={"limit": _LIMIT})
            records = answer.json()["requests"]
        except (httpx.HTTPError, ValueError, LookupError, TypeError):
            return {}
        return transfers_of(each for each in records if each["at"] >= self._began_at)

    async def _counts(self) -> dict[str, int]:
        try:
            return counts_of((await self._client.get("/metrics")).text)
        except httpx.HTTPError:
            return {}


def counts_of(text: str) -> dict[str, int]:
    """Read what is counted from the text of /metrics."""
    counts: dict[str, int] = {}
    for name, label, value, number in _SAMPLE.findall(text):
        if (word := _COUNTED.get(name)) is not None:
            word = value if not word else word if label == "model_name" else f"{word} ({value})"
            counts[word] = counts.get(word, 0) + int(float(number))
    return counts


def transfers_of(records: Iterator[Mapping[str, Any]]) -> dict[str, float]:
    """Sum up the transfers of what /debug/requests tells."""
    attempts = [attempt for record in records for attempt in record["attempts"] if attempt["prefill"] is not None]
    spans = [span for attempt in attempts for span in attempt["spans"] if span["kind"] == "transfer"]
    again = [
        attempt
        for attempt in attempts
        if any(span["kind"] == "prefill" and span["worker"] == attempt["decode"] for span in attempt["spans"])
    ]
    if not attempts:
        return {}
    exposed = sorted(span["exposed_ms"] for span in spans)
    whole: dict[str, float] = {"seen": len(attempts), "arrived": len(spans), "computed_again": len(again)}
    if not exposed:
        return whole
    return {
        **whole,
        "mean_tokens": sum(span["tokens"] for span in spans) / len(spans),
        "median_exposed_ms": at(exposed, 0.5),
        "p99_exposed_ms": at(exposed, 0.99),
        "max_exposed_ms": exposed[-1],
    }
