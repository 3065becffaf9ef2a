"""Runs of `baton bench serve --out docs/results/CARD/NAME.json` as a table: <!-- table: serving CARD NAME -->."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docs.markdown import rows

RESULTS = Path(__file__).parent / "results"


def serving_table(card: str, name: str = "serving") -> str:
    """Return a row a rate and server: the share of good requests at each gap target, and what stands beside it."""
    servers = json.loads((RESULTS / card / f"{name}.json").read_text())["servers"]
    runs = [(float(run["rate"]), label, run) for label, server in servers.items() for run in server["runs"]]
    gaps = sorted({goodput["itl_target_ms"] for _, _, run in runs for goodput in run["goodput"]}, reverse=True)
    order = list(servers)
    runs.sort(key=lambda each: (each[0], order.index(each[1])))
    head = ("requests/s", "server", *(f"good, gap <= {gap:g} ms" for gap in gaps))
    return rows((*head, "TTFT p50, p99, ms", "gap p99, longest, ms", "lost"), [_line(*each, gaps) for each in runs])


def _line(rate: float, label: str, run: dict[str, Any], gaps: list[float]) -> tuple[str, ...]:
    shares = {goodput["itl_target_ms"]: goodput["share"] for goodput in run["goodput"]}
    return (
        f"{rate:g}",
        label,
        *(f"{shares[gap]:.2f}" if gap in shares else "" for gap in gaps),
        f"{run['median_ttft_ms']:,.0f}, {run['p99_ttft_ms']:,.0f}",
        f"{run['p99_itl_ms']:.1f}, {run['max_itl_ms']:,.0f}",
        str(run["failed"]),
    )
