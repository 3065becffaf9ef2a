"""Every query that the dashboards, alerts and records of compose/ hold."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

COMPOSE = Path(__file__).parents[2] / "compose"
RULES = COMPOSE / "prometheus" / "alerts.yml"
DASHBOARDS = sorted((COMPOSE / "grafana" / "dashboards").glob("*.json"))
_VARIABLES = {"$__rate_interval": "20s", "$role": "prefill|decode", "$instance": ".+"}


def panels(path: Path) -> list[tuple[str, list[str]]]:
    """Return a dashboard's panels, each with its queries as Grafana sends them with everything picked."""
    shown = json.loads(path.read_text())["panels"]
    return [
        (panel["title"], [filled(target["expr"]) for target in panel["targets"]])
        for panel in shown
        if panel["type"] != "row"
    ]


def filled(query: str) -> str:
    """Put values in the place of Grafana's variables."""
    for name, value in _VARIABLES.items():
        query = query.replace(name, value)
    return query


def rules() -> dict[str, str]:
    """Return the query of each alert and record, by its name."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule.get("alert") or rule["record"]: rule["expr"] for group in groups for rule in group["rules"]}


def all_queries() -> dict[str, str]:
    """Return every query, by where it stands."""
    shown = {
        f"{path.stem}: {title} #{number}": query
        for path in DASHBOARDS
        for title, queries in panels(path)
        for number, query in enumerate(queries)
    }
    return {**shown, **rules()}
