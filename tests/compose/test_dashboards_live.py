"""Every panel of the dashboards shows something when a real Prometheus scrapes real services under load."""

import json
import math
import shutil
import subprocess
from collections.abc import Iterator

import httpx
import pytest
from tests.cluster import WORKERS, Cluster, prompt_of, stream_all
from tests.processes import HANG_S, eventually, free_ports

from .promql import DASHBOARDS, RULES, panels

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: apt install prometheus)"
)


@pytest.fixture(scope="module")
def prometheus(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("prometheus")
    (port,) = free_ports(1)
    targets = {"router": list(cluster.routers.values())}
    for name, worker in cluster.workers.items():
        targets.setdefault(WORKERS[name], []).append(worker)
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{each.port}" for each in those]}]}
            for job, those in targets.items()
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            return httpx.get(f"{url}/-/ready").status_code == 200
        except httpx.HTTPError:
            return False

    try:
        eventually(is_ready, "Prometheus is ready")
        yield url
    finally:
        process.terminate()
        process.wait(HANG_S)


def values(url: str, query: str) -> list[float]:
    """Return the numbers that a query has now."""
    answer = httpx.post(f"{url}/api/v1/query", data={"query": query}).json()
    assert answer["status"] == "success", (query, answer)
    found = [float(each["value"][1]) for each in answer["data"]["result"]]
    return [value for value in found if math.isfinite(value)]


def test_every_panel_shows_something_under_load(cluster: Cluster, prometheus: str) -> None:
    missing = {(path.stem, title, query) for path in DASHBOARDS for title, queries in panels(path) for query in queries}
    seeds = iter(range(10_000, 20_000))

    def all_have_values() -> bool:
        prompts = [prompt_of(next(seeds), 80) for _ in range(4)]
        stream_all(cluster, "2p2d", [*prompts, *prompts], max_tokens=6)
        stream_all(cluster, "1p1d", prompts, max_tokens=6)
        missing.difference_update([each for each in missing if values(prometheus, each[2])])
        return not missing

    try:
        eventually(all_have_values, "every query has a value")
    except AssertionError:
        raise AssertionError(f"without a value: {sorted(missing)}") from None


def test_every_target_is_scraped_and_every_rule_evaluated(cluster: Cluster, prometheus: str) -> None:
    num_targets = len(cluster.routers) + len(cluster.workers)
    eventually(lambda: values(prometheus, "count(up == 1)") == [num_targets], "every target is up")

    def rules_are_sound() -> bool:
        groups = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"]
        return all(rule["health"] == "ok" for group in groups for rule in group["rules"])

    eventually(rules_are_sound, "every rule was evaluated")


def test_routers_without_redis_do_not_count_as_cut_off_from_it(prometheus: str) -> None:
    eventually(lambda: values(prometheus, "min(baton:registry_up)") == [1.0], "only routers with Redis count")
