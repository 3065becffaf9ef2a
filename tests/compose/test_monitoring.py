"""Dashboards and alerts ask only for what the services export, in PromQL that Prometheus reads."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from compose.grafana import make_dashboards
from prometheus_client.parser import text_string_to_metric_families
from tests.processes import HANG_S

from baton.metrics import RouterMetrics, WorkerMetrics

from .promql import COMPOSE, DASHBOARDS, RULES, all_queries, rules

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt install prometheus)"
)
_SERIES = re.compile(r"baton:[a-z0-9_]+")
_LABELS = re.compile(r"\{([^}]*)\}")


def exported() -> tuple[set[str], set[str]]:
    """Return the names of all samples, and all labels, of a router and a worker that have seen one of everything."""
    router, worker = RouterMetrics("m"), WorkerMetrics("m")
    router.http_requests.inc("/v1/completions", "200")
    router.phase_seconds.observe("queue", 0.1)
    worker.phase_seconds.observe("queue", 0.1)
    worker.kv_blocks.labels("free")
    samples = [
        sample
        for metrics in (router, worker)
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    ]
    return {s.name for s in samples}, {label for s in samples for label in s.labels} | {"job", "instance"}


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_the_dashboards_are_what_their_script_makes(path: Path) -> None:
    assert path.read_text() == make_dashboards.texts()[path], "run: python compose/grafana/make_dashboards.py"


def test_no_dashboard_is_missing() -> None:
    assert set(DASHBOARDS) == set(make_dashboards.texts())


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_have_a_place_of_their_own_and_say_what_they_show(path: Path) -> None:
    shown = json.loads(path.read_text())["panels"]
    cells = [
        (x, y)
        for panel in shown
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in shown}) == len(shown)
    assert all(panel["description"] for panel in shown if panel["type"] != "row")


@pytest.mark.parametrize(("where", "query"), all_queries().items())
def test_every_series_and_label_that_is_asked_for_exists(where: str, query: str) -> None:
    names, labels = exported()
    asked = set(_SERIES.findall(query))
    assert asked or "slo:" in query or "up{" in query, where
    assert asked <= names, where
    matched = {re.split("=|!", part)[0] for inside in _LABELS.findall(query) for part in inside.split(",")}
    grouped = {label.strip() for inside in re.findall(r"by \(([^)]*)\)", query) for label in inside.split(",")}
    assert matched | grouped <= labels, where


def test_alerts_ask_for_records_that_are_made() -> None:
    made = rules()
    asked = {name for query in made.values() for name in re.findall(r"slo:[a-z0-9_:]+", query)}
    assert asked == {name for name in made if name.startswith("slo:")}


@needs_promtool
def test_prometheus_reads_its_configuration() -> None:
    promtool("check", "config", "--syntax-only", str(COMPOSE / "prometheus" / "prometheus.yml"))
    promtool("check", "rules", str(RULES))


@needs_promtool
def test_alerts_fire_for_their_cause_and_are_silent_without() -> None:
    tests = Path(__file__).parent / "alerts_test.yml"
    tested = {
        each["alertname"]
        for group in yaml.safe_load(tests.read_text())["tests"]
        for each in group["alert_rule_test"]
        if each["exp_alerts"]
    }
    assert tested == {name for name in rules() if not name.startswith("slo:")}
    promtool("test", "rules", str(tests))


@needs_promtool
def test_prometheus_reads_every_query_of_the_dashboards(tmp_path: Path) -> None:
    records = [{"record": f"q{i}", "expr": query} for i, query in enumerate(all_queries().values())]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": records}]}))
    promtool("check", "rules", str(file))
