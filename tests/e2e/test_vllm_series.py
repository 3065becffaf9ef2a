"""vLLM's series: dashboards made for it find each that they ask for, and none is counted by two services."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.cluster import MODEL, Cluster, prompt_of, stream_all
from tests.processes import BatonProcess, eventually

ASKED_FOR = """
    request_success_total{finished_reason} prompt_tokens_total generation_tokens_total num_requests_running
    num_requests_waiting num_requests_waiting_by_reason{reason=capacity} num_requests_waiting_by_reason{reason=deferred}
    engine_sleep_state{sleep_state=awake} kv_cache_usage_perc gpu_cache_usage_perc num_preemptions_total
    prefix_cache_hits_total prefix_cache_queries_total external_prefix_cache_hits_total
    external_prefix_cache_queries_total prompt_tokens_cached_total prompt_tokens_by_source_total{source}
    time_to_first_token_seconds_bucket{le} time_to_first_token_seconds_sum time_to_first_token_seconds_count
    inter_token_latency_seconds_bucket{le} inter_token_latency_seconds_sum inter_token_latency_seconds_count
    time_per_output_token_seconds_bucket{le} request_time_per_output_token_seconds_bucket{le}
    e2e_request_latency_seconds_bucket{le} e2e_request_latency_seconds_sum e2e_request_latency_seconds_count
    request_queue_time_seconds_bucket{le} request_queue_time_seconds_sum request_prefill_time_seconds_bucket{le}
    request_prefill_time_seconds_sum request_decode_time_seconds_bucket{le} request_decode_time_seconds_sum
    request_inference_time_seconds_bucket{le} request_prompt_tokens_bucket{le} request_prompt_tokens_sum
    request_generation_tokens_bucket{le} request_generation_tokens_sum request_max_num_generation_tokens_bucket{le}
    request_max_num_generation_tokens_sum request_params_n_bucket{le} request_params_max_tokens_bucket{le}
    request_prefill_kv_computed_tokens_bucket{le} iteration_tokens_total_bucket{le} iteration_tokens_total_sum
    iteration_tokens_total_count cache_config_info{block_size} cache_config_info{num_gpu_blocks}
"""
"""What the queries of vLLM's public dashboards and of tools around it read, with the labels that they pick by."""


def samples(process: BatonProcess) -> Iterator[tuple[str, dict[str, str], float]]:
    text = httpx.get(f"{process.url}/metrics").text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("vllm:"):
                yield sample.name.removeprefix("vllm:"), sample.labels, sample.value


def summed(cluster: Cluster) -> dict[str, float]:
    """What `sum by (the label that tells them apart)` over a scrape of all services gives."""
    total: dict[str, float] = defaultdict(float)
    for process in (*cluster.routers.values(), *cluster.workers.values()):
        for name, labels, value in samples(process):
            kind = labels.get("finished_reason") or labels.get("source") or labels.get("le")
            total[f"{name}{{{kind}}}" if kind else name] += value
    return total


def settled(cluster: Cluster) -> dict[str, float]:
    """Return the sums once no worker tells of more steps: each does so once a second at most."""
    last, since = summed(cluster), time.monotonic()

    def is_settled() -> bool:
        nonlocal last, since
        now = summed(cluster)
        if now["iteration_tokens_total_sum"] != last["iteration_tokens_total_sum"]:
            since = time.monotonic()
        last = now
        return time.monotonic() - since > 3

    eventually(is_settled, "workers have told of their steps")
    return last


@pytest.fixture(scope="module")
def moved(cluster: Cluster) -> dict[str, float]:
    """How the sums moved by 3 prompts of 100 tokens, over two workers, asked twice for 6 tokens."""
    cluster.assert_quiet()
    before = settled(cluster)
    prompts = [prompt_of(9400 + i, 100) for i in range(3)]
    for _ in range(2):
        stream_all(cluster, "1p1d", prompts, max_tokens=6)
        cluster.assert_quiet()
    steps = "iteration_tokens_total_sum"
    # 300 of the prompts and the 12 after their cached blocks on each worker; of each answer all but the first token
    eventually(lambda: summed(cluster)[steps] - before[steps] >= 300 + 12 + 30, "workers have told of their steps")
    return {name: value - before[name] for name, value in summed(cluster).items()}


def test_every_series_that_a_dashboard_asks_for_is_found_at_a_router(cluster: Cluster, moved: dict[str, float]) -> None:
    found = list(samples(cluster.routers["1p1d"]))
    for word in ASKED_FOR.split():
        name, _, matcher = word.rstrip("}").partition("{")
        label, _, wanted = matcher.partition("=")
        assert any(
            name == each and (not label or labels.get(label, "") == wanted or (not wanted and label in labels))
            for each, labels, _ in found
        ), word
    assert {(labels["model_name"], labels["engine"]) for _, labels, _ in found} == {(MODEL, "0")}


def test_workers_do_not_export_what_routers_count(cluster: Cluster) -> None:
    assert [list(samples(worker)) for worker in cluster.workers.values()] == [[], [], [], []]


def test_sums_over_all_services_count_each_event_once(moved: dict[str, float]) -> None:
    wanted = {
        "request_success_total{length}": 6,
        "prompt_tokens_total": 600,
        "generation_tokens_total": 36,
        "prefix_cache_queries_total": 600,
        "prefix_cache_hits_total": 288,
        "prompt_tokens_cached_total": 288,
        "prompt_tokens_by_source_total{local_compute}": 312,
        "prompt_tokens_by_source_total{local_cache_hit}": 288,
        "prompt_tokens_by_source_total{external_kv_transfer}": 0,
        "external_prefix_cache_queries_total": 312,
        "external_prefix_cache_hits_total": 0,
        "time_to_first_token_seconds_count": 6,
        "inter_token_latency_seconds_count": 30,
        "e2e_request_latency_seconds_count": 6,
        "request_time_per_output_token_seconds_count": 6,
        "request_prompt_tokens_sum": 600,
        "request_prompt_tokens_bucket{50.0}": 0,
        "request_prompt_tokens_bucket{100.0}": 6,
        "request_prefill_kv_computed_tokens_sum": 312,
        "request_generation_tokens_sum": 36,
        "request_max_num_generation_tokens_sum": 36,
        "request_params_n_sum": 6,
        "request_params_max_tokens_sum": 36,
        "num_preemptions_total": 0,
    }
    assert {name: moved[name] for name in wanted} == wanted
    for name in ("queue", "prefill", "decode", "inference"):
        assert moved[f"request_{name}_time_seconds_count"] == 6
        assert moved[f"request_{name}_time_seconds_sum"] > 0
    phases = moved["request_prefill_time_seconds_sum"] + moved["request_decode_time_seconds_sum"]
    assert phases == pytest.approx(moved["request_inference_time_seconds_sum"])


def test_the_steps_of_all_workers_are_counted_by_their_size(moved: dict[str, float]) -> None:
    assert moved["iteration_tokens_total_sum"] < 300 + 12 + 12 + 36 + 6
    assert moved["iteration_tokens_total_bucket{+Inf}"] == moved["iteration_tokens_total_count"] > 0
    assert moved["iteration_tokens_total_bucket{128.0}"] == moved["iteration_tokens_total_count"], (
        "the budget of a step"
    )
    assert moved["iteration_tokens_total_bucket{1.0}"] < moved["iteration_tokens_total_count"]
