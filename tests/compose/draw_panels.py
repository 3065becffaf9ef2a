"""Draw every panel of the dashboards from a running Prometheus, as PNG, without Grafana. Needs matplotlib.

python -m tests.compose.draw_panels http://127.0.0.1:9090 FOLDER [MINUTES]
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import matplotlib

from .promql import DASHBOARDS, filled

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm

STEP_S = 5


def series(url: str, query: str, minutes: float) -> list[dict[str, Any]]:
    """Return what a query is over the last minutes."""
    end = STEP_S * (time.time() // STEP_S)  # the same times for every query of a panel
    asked = {"query": query, "start": str(end - 60 * minutes), "end": str(end), "step": str(STEP_S)}
    answer = httpx.post(f"{url}/api/v1/query_range", data=asked, timeout=60).json()
    assert answer["status"] == "success", (query, answer)
    return list(answer["data"]["result"])


def legend(pattern: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), pattern)


def draw_lines(axes: Any, panel: dict[str, Any], url: str, minutes: float) -> int:
    """Draw a panel's lines, or its stacked areas; return how many there are."""
    lines = {
        legend(target["legendFormat"], each["metric"]): [(float(at), float(value)) for at, value in each["values"]]
        for target in panel["targets"]
        for each in series(url, filled(target["expr"]), minutes)
    }
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    if custom.get("stacking", {}).get("mode") == "normal":
        times = sorted({at for values in lines.values() for at, _ in values})
        rows = [[dict(values).get(at, 0.0) for at in times] for values in lines.values()]
        axes.stackplot([at - time.time() for at in times], *rows, labels=lines, alpha=0.6)
    else:
        for name, values in lines.items():
            axes.plot([at - time.time() for at, _ in values], [value for _, value in values], label=name, lw=1)
    axes.set_ylim(bottom=0, top=panel["fieldConfig"]["defaults"].get("max"))
    if lines:
        axes.legend(fontsize=6, ncols=2, loc="upper left")
    return len(lines)


def draw_heat(axes: Any, panel: dict[str, Any], url: str, minutes: float) -> int:
    """Draw a histogram's buckets over time."""
    found = series(url, filled(panel["targets"][0]["expr"]), minutes)
    found.sort(key=lambda each: float(each["metric"]["le"]))
    edges = [each["metric"]["le"] for each in found]
    below = [dict(each["values"]) for each in found]
    times = sorted({at for values in below for at in values})
    counts = [[float(values.get(at, 0)) for at in times] for values in below]
    cells = [
        [max(b - a, 0.0) for a, b in zip(low, high, strict=True)]
        for low, high in zip([[0.0] * len(times), *counts], counts, strict=False)
    ]
    if times:
        axes.pcolormesh(
            [at - time.time() for at in times],
            range(len(edges)),
            [[c if c > 0.01 else math.nan for c in row] for row in cells],
            cmap="Blues",
            norm=LogNorm(vmin=0.05),
        )
    axes.set_yticks(range(len(edges)), edges, fontsize=5)
    return len(found)


def main() -> None:
    """Draw one picture a dashboard."""
    url, folder = sys.argv[1], Path(sys.argv[2])
    minutes = float(sys.argv[3]) if len(sys.argv) > 3 else 5.0
    for path in DASHBOARDS:
        panels = [panel for panel in json.loads(path.read_text())["panels"] if panel["type"] != "row"]
        rows = math.ceil(len(panels) / 3)
        figure, grid = plt.subplots(rows, 3, figsize=(18, 3.2 * rows), layout="constrained", squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.axis("off")
        for panel, axes in zip(panels, grid.flat, strict=False):
            draw = draw_heat if panel["type"] == "heatmap" else draw_lines
            num_lines = draw(axes, panel, url, minutes)
            unit = panel["fieldConfig"]["defaults"].get("unit", "s")
            axes.set_title(f"{panel['title']} [{unit}]" + ("" if num_lines else "  NO DATA"), fontsize=9)
            axes.tick_params(labelsize=6)
        figure.suptitle(path.stem)
        figure.savefig(folder / f"{path.stem}.png", dpi=80)


if __name__ == "__main__":
    main()
