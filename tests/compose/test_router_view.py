"""What `baton bench serve` reads of a Baton router after a run."""

from __future__ import annotations

from typing import Any

from baton.bench.router_view import counts_of, transfers_of
from baton.metrics import RouterMetrics


def test_counts_are_read_from_the_routers_own_metrics() -> None:
    metrics = RouterMetrics("a,model")
    metrics.replays.inc("gap")
    metrics.replays.inc("gap")
    metrics.route_decisions.inc("remote", by=3)
    metrics.kv_integrity_failures.inc()
    counts = {name: count for name, count in counts_of(metrics.render().decode()).items() if count}
    assert counts == {"replays (gap)": 2, "remote": 3, "integrity failures": 1}


def attempt(prefill: str | None, *spans: dict[str, Any]) -> dict[str, Any]:
    return {"prefill": prefill, "decode": "d0", "spans": list(spans)}


def span(kind: str, worker: str, exposed_ms: float = 0.0) -> dict[str, Any]:
    return {"kind": kind, "worker": worker, "exposed_ms": exposed_ms, "tokens": 2048}


def test_transfers_tell_what_was_waited_for_and_what_was_computed_again() -> None:
    records = [
        {"attempts": [attempt(None, span("prefill", "d0"))]},
        {"attempts": [attempt("p0", span("prefill", "p0"), span("transfer", "d0", 2.0))]},
        {"attempts": [attempt("p0", span("transfer", "d0", 6.0)), attempt("p0", span("prefill", "d0"))]},
    ]
    assert transfers_of(iter(records)) == {
        "seen": 3,
        "arrived": 2,
        "computed_again": 1,
        "mean_tokens": 2048,
        "median_exposed_ms": 6.0,
        "p99_exposed_ms": 6.0,
        "max_exposed_ms": 6.0,
    }
    assert transfers_of(iter(records[:1])) == {}
