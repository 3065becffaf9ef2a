"""What the services count of a request that goes over two workers adds up."""

from tests.cluster import Cluster, prompt_of, stream_all
from tests.processes import BatonProcess, eventually

SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")


class Difference:
    """What a process has counted since this was made."""

    def __init__(self, process: BatonProcess) -> None:
        self._process = process
        self._before = process.metrics()

    def __getitem__(self, name: str) -> float:
        return self._process.metrics().get(name, 0.0) - self._before.get(name, 0.0)

    def sources(self) -> dict[str, float]:
        return {source: self[f'prompt_tokens_by_source_total{{source="{source}"}}'] for source in SOURCES}


def ask(cluster: Cluster, prompts: list[list[int]]) -> tuple[Difference, Difference, Difference]:
    """Send prompts over p0 and d0; return what router, p0 and d0 counted of them, once they have reported."""
    router, prefill, decode = (
        Difference(each) for each in (cluster.routers["1p1d"], cluster.workers["p0"], cluster.workers["d0"])
    )
    stream_all(cluster, "1p1d", prompts, max_tokens=6)
    num_tokens = sum(map(len, prompts))
    for counted in (prefill, decode):
        eventually(lambda counted=counted: counted["prompt_tokens_total"] == num_tokens, "all is reported")  # type: ignore[misc]
    cluster.assert_quiet()
    return router, prefill, decode


def test_prompt_tokens_are_counted_by_where_their_kv_came_from(cluster: Cluster) -> None:
    prompts = [prompt_of(7100 + i, 100) for i in range(3)]
    _, prefill, decode = ask(cluster, prompts)
    assert prefill.sources() == {"local_compute": 300, "local_cache_hit": 0, "external_kv_transfer": 0}
    assert decode.sources() == {"local_compute": 0, "local_cache_hit": 0, "external_kv_transfer": 300}
    _, prefill, decode = ask(cluster, prompts)
    assert prefill.sources() == {"local_compute": 12, "local_cache_hit": 288, "external_kv_transfer": 0}
    assert decode.sources() == {"local_compute": 0, "local_cache_hit": 288, "external_kv_transfer": 12}, "the tails"


def test_what_is_sent_is_received_and_each_hold_ends_with_its_fetch(cluster: Cluster) -> None:
    _, prefill, decode = ask(cluster, [prompt_of(7200 + i, 90) for i in range(4)])
    eventually(lambda: decode['kv_fetches_total{result="done"}'] == 4, "the last fetch is reported")
    eventually(lambda: prefill['kv_releases_total{reason="fetched"}'] == 4, "the last release is reported")
    assert prefill["kv_transfer_sent_bytes_total"] >= decode["kv_transfer_bytes_total"] > 0
    assert decode["kv_transfer_exposed_seconds_count"] == decode["kv_transfer_seconds_count"] == 4


def test_each_process_times_its_phases_of_each_request(cluster: Cluster) -> None:
    router, prefill, decode = ask(cluster, [prompt_of(7300 + i, 70) for i in range(2)])
    for counted, phases in (
        (router, ("route", "queue", "first_token", "generate")),
        (prefill, ("queue", "compute", "prefill")),
        (decode, ("queue", "compute", "decode")),
    ):
        series = [*(f'phase_seconds_count{{phase="{phase}"}}' for phase in phases), "request_queue_time_seconds_count"]
        eventually(lambda c=counted, s=series: [c[name] for name in s] == [2] * len(s), "all is reported")  # type: ignore[misc]
    assert router['route_decisions_total{path="remote"}'] == 2


def test_what_has_not_happened_yet_is_counted_as_zero(cluster: Cluster) -> None:
    shown = cluster.routers["0p1d"].metrics()
    for series in (
        'replays_total{reason="integrity"}',
        'admission_refusals_total{reason="kv_blocks"}',
        'route_decisions_total{path="remote"}',
    ):
        assert shown[series] == 0
