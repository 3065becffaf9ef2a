"""Writes the Grafana dashboards: what each panel asks Prometheus, and how it is drawn.

    python compose/grafana/make_dashboards.py

The JSON in dashboards/ is what this makes, so edit here. `job` is the role of a target: router, prefill or decode.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
RATE = "[$__rate_interval]"
WORKER = "{{job}} {{instance}}"
ROUTER = 'job="router"'
PICKED = 'job=~"$role",instance=~"$instance"'
"""For dashboards on which roles and workers are picked."""


@dataclass(frozen=True, slots=True)
class Target:
    """One query of a panel, and what its lines are called."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel; its place follows from the order."""

    title: str
    description: str
    targets: tuple[Target, ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 7
    stacked: bool = False
    most: float | None = None
    alarm_below: float | None = None
    alarm_from: float | None = None


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One file: rows of panels under headings."""

    name: str
    title: str
    description: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    picks_workers: bool = False


# -- queries --------------------------------------------------------------------------------------------------


def rate(series: str, by: str = "", where: str = "") -> str:
    """Ask for a counter's rate, summed."""
    matchers = f"{{{where}}}" if where else ""
    return f"sum{f' by ({by})' if by else ''} (rate(baton:{series}{matchers}{RATE}))"


def share(part: str, whole: str) -> str:
    """Ask for a quotient, where there is anything to divide by."""
    return f"{part} / ({whole} > 0)"


def quantiles(series: str, where: str = "") -> tuple[Target, ...]:
    """Ask for the median, the 90th and the 99th percentile of a histogram."""
    buckets = rate(f"{series}_bucket", "le", where)
    return tuple(Target(f"histogram_quantile({q}, {buckets})", f"p{round(100 * q)}") for q in (0.5, 0.9, 0.99))


def quantile_by(q: float, series: str, by: str, where: str = "") -> str:
    """Ask for one quantile of a histogram, for each value of some labels."""
    return f"histogram_quantile({q}, {rate(f'{series}_bucket', f'le, {by}', where)})"


def heat(series: str) -> tuple[Target, ...]:
    """Ask for a histogram's buckets over time."""
    return (Target(f"sum by (le) (increase(baton:{series}_bucket{RATE}))", "{{le}}"),)


# -- what is shown --------------------------------------------------------------------------------------------

USERS = (
    Panel(
        title="Requests a second",
        description="Choices that ended, for whatever reason.",
        targets=(Target(rate("request_success_total"), "requests"),),
        unit="reqps",
        kind="stat",
        width=4,
        height=4,
    ),
    Panel(
        title="Tokens a second",
        description="Tokens that clients were sent.",
        targets=(Target(rate("generation_tokens_total", where=ROUTER), "tokens"),),
        kind="stat",
        width=4,
        height=4,
    ),
    Panel(
        title="First token, p99",
        description="From a request's arrival to its first token.",
        targets=(quantiles("time_to_first_token_seconds")[2],),
        unit="s",
        kind="stat",
        width=4,
        height=4,
    ),
    Panel(
        title="Between tokens, p99",
        description="From one token of an answer to the next.",
        targets=(quantiles("inter_token_latency_seconds")[2],),
        unit="s",
        kind="stat",
        width=4,
        height=4,
    ),
    Panel(
        title="Errors",
        description="Share of answers that ended with an error. Answers that the client left count as neither.",
        targets=(
            Target(
                share(
                    rate("request_success_total", where='finished_reason="error"'),
                    rate("request_success_total", where='finished_reason!="abort"'),
                ),
                "errors",
            ),
        ),
        unit="percentunit",
        kind="stat",
        width=4,
        height=4,
        alarm_from=0.001,
    ),
    Panel(
        title="Live workers",
        description="Workers that routers see, by leg. Without a decode worker nothing is answered.",
        targets=(Target("max by (leg) (baton:workers)", "{{leg}}"),),
        kind="stat",
        width=4,
        height=4,
        alarm_below=1,
    ),
    Panel(
        title="Time to first token",
        description="From a request's arrival to its first token.",
        targets=quantiles("time_to_first_token_seconds"),
        unit="s",
        width=12,
    ),
    Panel(
        title="Inter-token latency",
        description="From one token of an answer to the next. A replay or a transfer that came late shows here.",
        targets=quantiles("inter_token_latency_seconds"),
        unit="s",
        width=12,
    ),
    Panel(
        title="Time to first token, spread",
        description="How many requests got their first token after how long. Two bands: cached and uncached prompts.",
        targets=heat("time_to_first_token_seconds"),
        unit="s",
        kind="heatmap",
        width=12,
    ),
    Panel(
        title="Inter-token latency, spread",
        description="How many tokens came how long after the one before.",
        targets=heat("inter_token_latency_seconds"),
        unit="s",
        kind="heatmap",
        width=12,
    ),
    Panel(
        title="Requests open",
        description="Waiting: accepted and without a token. Running: being answered.",
        targets=(
            Target(f"sum(baton:num_requests_running{{{ROUTER}}})", "running"),
            Target(f"sum(baton:num_requests_waiting{{{ROUTER}}})", "waiting"),
        ),
        stacked=True,
    ),
    Panel(
        title="How answers end",
        description="stop, length: whole. abort: the client left. error: the client was told of one.",
        targets=(Target(rate("request_success_total", "finished_reason"), "{{finished_reason}}"),),
        unit="reqps",
        stacked=True,
    ),
    Panel(
        title="Refusals",
        description="Requests refused with 429 before they queued. queued_tokens: prefill is short; kv_blocks: decode is.",
        targets=(Target(rate("admission_refusals_total", "reason"), "{{reason}}"),),
        unit="reqps",
        stacked=True,
    ),
)

ROUTING = (
    Panel(
        title="Route decisions",
        description="remote: a prefill worker computes the prompt and its KV is sent. local: the decode worker computes it, "
        "because it is short, mostly cached, or that is faster now.",
        targets=(Target(rate("route_decisions_total", "path"), "{{path}}"),),
        unit="reqps",
        stacked=True,
    ),
    Panel(
        title="Replays",
        description="Requests sent again under a higher epoch. The client sees a pause, no error. draining is planned.",
        targets=(Target(rate("replays_total", "reason"), "{{reason}}"),),
        unit="reqps",
        stacked=True,
    ),
    Panel(
        title="Phases in the router, mean",
        description="queue: until sent to workers. first_token: from there to the first token. generate: the rest.",
        targets=(
            Target(
                share(
                    rate("phase_seconds_sum", "phase", f'{ROUTER},phase!="route"'),
                    rate("phase_seconds_count", "phase", f'{ROUTER},phase!="route"'),
                ),
                "{{phase}}",
            ),
        ),
        unit="s",
        stacked=True,
    ),
    Panel(
        title="Time to decide a route",
        description="What choosing workers costs a request.",
        targets=quantiles("phase_seconds", f'{ROUTER},phase="route"'),
        unit="s",
    ),
    Panel(
        title="Prompt tokens found cached",
        description="Share of prompt tokens that no worker computed, as clients see it in usage.",
        targets=(
            Target(
                share(rate("prefix_cache_hits_total", where=ROUTER), rate("prefix_cache_queries_total", where=ROUTER)),
                "cached",
            ),
        ),
        unit="percentunit",
        most=1,
    ),
    Panel(
        title="Redis, and messages dropped",
        description="registry: 1 while Redis answers. stale: messages a second of a closed epoch, which are dropped.",
        targets=(
            Target("min(baton:registry_up)", "registry"),
            Target(rate("stale_messages_total", "job"), "stale, {{job}}"),
        ),
    ),
)

ROLES = (
    Panel(
        title="Prompt tokens waiting, by role",
        description="Prompt tokens that are asked for and not computed. Scale prefill on it.",
        targets=(Target("sum by (job) (baton:num_prompt_tokens_waiting)", "{{job}}"),),
    ),
    Panel(
        title="KV use, by role",
        description="Share of KV blocks in use, cached ones aside: the fullest worker and the mean. Scale decode on it.",
        targets=(
            Target("max by (job) (baton:kv_cache_usage_perc)", "{{job}}, fullest"),
            Target("avg by (job) (baton:kv_cache_usage_perc)", "{{job}}, mean"),
        ),
        unit="percentunit",
        most=1,
    ),
    Panel(
        title="Where the KV of prompts comes from, by role",
        description="Prompt tokens a second: computed, found in the worker's own prefix cache, fetched from another worker.",
        targets=(Target(rate("prompt_tokens_by_source_total", "job, source"), "{{job}}: {{source}}"),),
        stacked=True,
    ),
)

LOAD = (
    Panel(
        title="Running",
        description="Sequences that take part in steps.",
        targets=(Target(f"baton:num_requests_running{{{PICKED}}}", WORKER),),
    ),
    Panel(
        title="Waiting",
        description="Sequences in the queue, and prompts whose KV is on the way.",
        targets=(Target(f"baton:num_requests_waiting{{{PICKED}}}", WORKER),),
    ),
    Panel(
        title="Prompt tokens waiting",
        description="Prompt tokens that are asked for and not computed, chunks of running prompts included.",
        targets=(Target(f"baton:num_prompt_tokens_waiting{{{PICKED}}}", WORKER),),
    ),
    Panel(
        title="Tokens generated a second",
        description="A prefill worker gives each prompt's first token, a decode worker the rest.",
        targets=(Target(rate("generation_tokens_total", "job, instance", PICKED), WORKER),),
    ),
    Panel(
        title="Prompt tokens computed a second",
        description="Those found in a cache or fetched are not among them.",
        targets=(
            Target(rate("prompt_tokens_by_source_total", "job, instance", f'source="local_compute",{PICKED}'), WORKER),
        ),
    ),
    Panel(
        title="Preemptions",
        description="Sequences a second put back for want of KV blocks; they are computed again.",
        targets=(Target(rate("num_preemptions_total", "job, instance", PICKED), WORKER),),
        unit="ops",
    ),
)

CACHE = (
    Panel(
        title="KV use",
        description="Share of KV blocks that sequences hold. Cached blocks count as free: they give way.",
        targets=(Target(f"baton:kv_cache_usage_perc{{{PICKED}}}", WORKER),),
        unit="percentunit",
        most=1,
    ),
    Panel(
        title="KV blocks by state",
        description="free + cached + held = total, always.",
        targets=(Target(f'sum by (job, state) (baton:kv_blocks{{state!="total",{PICKED}}})', "{{job}}: {{state}}"),),
        stacked=True,
    ),
    Panel(
        title="Prefix cache hits",
        description="Share of prompt tokens found in the worker's own prefix cache.",
        targets=(
            Target(
                share(
                    rate("prefix_cache_hits_total", "job, instance", PICKED),
                    rate("prefix_cache_queries_total", "job, instance", PICKED),
                ),
                WORKER,
            ),
        ),
        unit="percentunit",
        most=1,
    ),
    Panel(
        title="Prompt tokens by source",
        description="A prompt that goes over a prefill worker counts on both: computed or cached there, fetched here.",
        targets=(Target(rate("prompt_tokens_by_source_total", "job, source", PICKED), "{{job}}: {{source}}"),),
        stacked=True,
        width=12,
    ),
    Panel(
        title="Phases, p90",
        description="queue: until the first step with a part of it. compute: from there to the worker's first token. prefill, "
        "decode: from the start to the last block given back.",
        targets=(Target(quantile_by(0.9, "phase_seconds", "job, phase", PICKED), "{{job}}: {{phase}}"),),
        unit="s",
        width=12,
    ),
)

TRANSFER = (
    Panel(
        title="KV received",
        description="Bytes a second that were fetched and verified.",
        targets=(Target(rate("kv_transfer_bytes_total", "job, instance") + " > 0", WORKER),),
        unit="Bps",
        stacked=True,
    ),
    Panel(
        title="KV sent",
        description="Bytes a second that left for other workers.",
        targets=(Target(rate("kv_transfer_sent_bytes_total", "job, instance") + " > 0", WORKER),),
        unit="Bps",
        stacked=True,
    ),
    Panel(
        title="KV moved since the start",
        description="Bytes fetched and verified; workers that are gone are no longer in it.",
        targets=(Target("sum by (job) (baton:kv_transfer_bytes_total) > 0", "{{job}}"),),
        unit="bytes",
    ),
    Panel(
        title="Time of a transfer",
        description="From the first block to the last. Most of it runs while the prompt is still being computed.",
        targets=quantiles("kv_transfer_seconds"),
        unit="s",
    ),
    Panel(
        title="Exposed time of a transfer",
        description="What a request waited for its KV: the part after the prompt was computed.",
        targets=quantiles("kv_transfer_exposed_seconds"),
        unit="s",
    ),
    Panel(
        title="Exposed time, spread",
        description="How many transfers had how much of it.",
        targets=heat("kv_transfer_exposed_seconds"),
        unit="s",
        kind="heatmap",
    ),
)

HELD = (
    Panel(
        title="Leases held",
        description="Prompts whose KV waits to be fetched.",
        targets=(Target("baton:kv_leases_held", WORKER),),
    ),
    Panel(
        title="Stranded bytes",
        description="KV held or reserved for requests that ended. Above 0 for moments only.",
        targets=(Target("baton:kv_stranded_bytes", WORKER),),
        unit="bytes",
    ),
    Panel(
        title="How holds end",
        description="fetched: as it should. expired: nobody came within the lease. cancelled: the request ended.",
        targets=(Target(rate("kv_releases_total", "reason"), "{{reason}}"),),
        unit="ops",
        stacked=True,
    ),
    Panel(
        title="How fetches end",
        description="done, or cancelled with the request. Anything else: what was good is kept, the rest computed again.",
        targets=(Target(rate("kv_fetches_total", "result"), "{{result}}"),),
        unit="ops",
        stacked=True,
    ),
    Panel(
        title="Integrity failures",
        description="Blocks, frames or tokens that failed a check, in the last hour. None went into an answer.",
        targets=(Target("sum by (job, instance) (increase(baton:kv_integrity_failures_total[1h]))", WORKER),),
        width=16,
    ),
)

DASHBOARDS = (
    Dashboard(
        "baton",
        "Baton",
        "What users get, where requests go, and whether each role keeps up.",
        (("What users get", USERS), ("Where requests go", ROUTING), ("Whether each role keeps up", ROLES)),
    ),
    Dashboard(
        "baton-workers",
        "Baton: workers",
        "Load and cache of each worker.",
        (("Load", LOAD), ("KV cache", CACHE)),
        picks_workers=True,
    ),
    Dashboard(
        "baton-kv",
        "Baton: KV transfer",
        "KV on its way from prefill to decode workers, and what is held for it.",
        (("On the way", TRANSFER), ("Held", HELD)),
    ),
)


# -- Grafana's JSON -------------------------------------------------------------------------------------------


def render(dashboard: Dashboard) -> dict[str, Any]:
    """Return a dashboard as Grafana reads it."""
    return {
        "uid": dashboard.name,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["baton"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "links": [{"type": "dashboards", "title": "Baton", "tags": ["baton"], "asDropdown": False, "keepTime": True}],
        "templating": {"list": _variables() if dashboard.picks_workers else []},
        "panels": list(_placed(dashboard.rows)),
    }


def _variables() -> list[dict[str, Any]]:
    queries = {
        "role": "label_values(baton:kv_blocks, job)",
        "instance": 'label_values(baton:kv_blocks{job=~"$role"}, instance)',
    }
    return [
        {
            "name": name,
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": query, "refId": name},
            "definition": query,
            "refresh": 2,
            "includeAll": True,
            "multi": True,
            "current": {"text": ["All"], "value": ["$__all"]},
        }
        for name, query in queries.items()
    ]


def _placed(rows: Iterable[tuple[str, tuple[Panel, ...]]]) -> Iterator[dict[str, Any]]:
    """Fill 24 columns from left to right, a heading before each row's panels."""
    number, top = 0, 0
    for heading, panels in rows:
        number += 1
        place = {"x": 0, "y": top, "w": 24, "h": 1}
        yield {"id": number, "type": "row", "title": heading, "collapsed": False, "gridPos": place, "panels": []}
        top, left, lowest = top + 1, 0, 0
        for panel in panels:
            if left + panel.width > 24:
                top, left, lowest = top + lowest, 0, 0
            number += 1
            place = {"x": left, "y": top, "w": panel.width, "h": panel.height}
            yield {"id": number, "gridPos": place, **_panel(panel)}
            left, lowest = left + panel.width, max(lowest, panel.height)
        top += lowest


def _panel(panel: Panel) -> dict[str, Any]:
    as_heatmap = panel.kind == "heatmap"
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": SOURCE,
                "expr": target.expr,
                "legendFormat": target.legend,
                "format": "heatmap" if as_heatmap else "time_series",
            }
            for i, target in enumerate(panel.targets)
        ],
        "options": {"timeseries": _TIMESERIES, "stat": _STAT, "heatmap": _heatmap(panel.unit)}[panel.kind],
        "fieldConfig": {"defaults": {} if as_heatmap else _field(panel), "overrides": []},
    }


_TIMESERIES = {
    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
    "tooltip": {"mode": "multi", "sort": "desc"},
}
_STAT = {
    "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    "colorMode": "value",
    "graphMode": "area",
    "textMode": "auto",
}


def _heatmap(unit: str) -> dict[str, Any]:
    return {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Blues", "steps": 32, "reverse": False},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "tooltip": {"mode": "single", "yHistogram": True},
        "yAxis": {"unit": unit, "axisPlacement": "left"},
    }


def _field(panel: Panel) -> dict[str, Any]:
    """Return how values are shown; nothing below zero is ever drawn, for nothing here can be."""
    sound, wrong = {"color": "green", "value": None}, "red"
    steps: list[dict[str, Any]] = [sound]
    if panel.alarm_from is not None:
        steps = [sound, {"color": wrong, "value": panel.alarm_from}]
    elif panel.alarm_below is not None:
        steps = [{"color": wrong, "value": None}, {"color": "green", "value": panel.alarm_below}]
    field: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic-by-name"},
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if panel.most is not None:
        field["max"] = panel.most
    if panel.kind == "timeseries":
        field["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 25 if panel.stacked else 0,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
    return field


def texts() -> dict[Path, str]:
    """Return each file and what belongs in it."""
    return {
        FOLDER / f"{dashboard.name}.json": json.dumps(render(dashboard), indent=1) + "\n" for dashboard in DASHBOARDS
    }


if __name__ == "__main__":
    for path, text in texts().items():
        path.write_text(text)
