"""Quantiles of histograms: buckets as (upper edge, how many values were at most that), in order, the last edge infinite."""

from __future__ import annotations

import math
from collections.abc import Sequence

Buckets = Sequence[tuple[float, float]]


def quantile(buckets: Buckets, q: float) -> float | None:
    """Estimate a quantile as Prometheus does: linear within its bucket; None without a value."""
    count = buckets[-1][1] if buckets else 0.0
    if count <= 0:
        return None
    rank = q * count
    low, below = 0.0, 0.0
    for edge, total in buckets:
        if total >= rank:
            if math.isinf(edge):
                return low
            return low + (edge - low) * (rank - below) / (total - below) if total > below else edge
        low, below = edge, total
    return low


def between(old: Buckets, new: Buckets) -> Buckets:
    """Return what buckets got since; all of it if they began anew."""
    if len(old) != len(new) or any(n < o for (_, o), (_, n) in zip(old, new, strict=True)):
        return list(new)
    return [(edge, n - o) for (edge, n), (_, o) in zip(new, old, strict=True)]
