"""vLLM's series under vLLM's names and labels, so that dashboards, alerts and autoscalers made for it find them.

They come from routers alone, and each event is counted by one router: `sum()` over all services is right. What a router
counts for itself is shown again under vLLM's name; what only workers know, they tell one router each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from baton.messages import STEP_TOKENS, Counted
from baton.metrics import PlainCounter, RouterMetrics, TokenHistogram
from baton.protocol import SamplingParams
from baton.router.sink import Usage

_Made = TypeVar("_Made", bound=Collector)
ENGINE = "0"
"""All workers of a router are one engine to its users."""
_SECONDS = (
    0.01,
    0.05,
    0.1,
    0.3,
    0.5,
    0.8,
    1,
    1.5,
    2,
    2.5,
    5,
    10,
    15,
    20,
    30,
    40,
    50,
    60,
    120,
    240,
    480,
    960,
    1920,
    7680,
)
_A_TOKEN_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1,
    2.5,
    5,
    10,
    40,
    80,
)
_TOKENS = tuple(mantissa * 10**exponent for exponent in range(6) for mantissa in (1, 2, 5))
_CHOICES = (1, 2, 5, 10, 20)

LEFT_OUT = (
    ("lora_requests_info", "Adapters are not served yet."),
    ("spec_decode_*", "Nothing is speculated yet."),
    ("mm_cache_queries_total, mm_cache_hits_total", "Pictures and sound are not served yet."),
    (
        "nixl_*, mooncake_*, umbp_*, hf3fs_*, kv_offload_*, simple_kv_offload_*, hisparse_*, num_requests_kv_fetch_by_stage",
        "KV moves by other means: see `baton:kv_transfer_*`, `baton:kv_fetches_*`, `baton:host_kv_*` of the workers.",
    ),
    ("kv_block_lifetime_seconds, kv_block_idle_before_evict_seconds, kv_block_reuse_gap_seconds", "Not measured."),
    ("request_num_preemptions", "Workers count preemptions, but not by request: see `vllm:num_preemptions_total`."),
    ("estimated_*_per_gpu_total", "`baton doctor` predicts a model's steps instead."),
    (
        "corrupted_requests_total, watermark_requests_total",
        "No answer is watermarked; blocks that fail their check are `baton:kv_integrity_failures_total`.",
    ),
    (
        "tool_call_parser_invocations_total, websocket_connection_duration_seconds, websocket_connections_*",
        "Not counted.",
    ),
    (
        "prompt_tokens_cached_by_source",
        "`vllm:prompt_tokens_by_source` has the tokens by where their KV came from; `usage` of a request, by tier.",
    ),
    (
        "sleep_mode_operations_in_flight, sleep_mode_operation_duration_seconds",
        "The log has each sleep; `engine_sleep_state`.",
    ),
    ("rl_weight_update_*", "Weights do not change while they are served."),
    ("diffusion_*", "Models that denoise are not served."),
)
"""What vLLM has and Baton has not, and why."""


@dataclass(slots=True)
class Times:
    """When a request that has a first token did what, by one clock."""

    arrived_at: float
    queued_s: float
    """Before the first step with a part of its prompt."""
    first_token_at: float
    last_token_at: float


@dataclass(slots=True)
class Seen:
    """What the dispatcher sees when somebody reads the series."""

    num_running: int = 0
    num_waiting: int = 0
    num_deferred: int = 0
    """Of those, requests for which no worker is there."""
    num_free_blocks: int = 0
    num_blocks: int = 0
    block_size: int = 0
    """0: no worker has come yet."""
    is_awake: bool = False
    is_asleep: bool = False
    """Whether a decode worker is alive."""


class VllmSeries(Collector):
    """Registers itself with a router's series, and counts what those do not have."""

    def __init__(self, metrics: RouterMetrics) -> None:
        self._model_name = metrics.model_name
        self._http_requests = metrics.http_requests
        self.seen = Seen()
        self._shown: list[tuple[Collector, str]] = [
            (metrics.request_success.collector, "request_success"),
            (metrics.admission_refusals.collector, "admission_rejections"),
            (metrics.prompt_tokens, "prompt_tokens"),
            (metrics.generation_tokens, "generation_tokens"),
            (metrics.prefix_cache_queries, "prefix_cache_queries"),
            (metrics.time_to_first_token_seconds, "time_to_first_token_seconds"),
            (metrics.inter_token_latency_seconds, "inter_token_latency_seconds"),
            (metrics.inter_token_latency_seconds, "time_per_output_token_seconds"),
            (metrics.e2e_request_latency_seconds, "e2e_request_latency_seconds"),
        ]
        self._hits = self._counter("prefix_cache_hits", "Prompt tokens found in the workers' own prefix caches.")
        self._external_queries = self._counter(
            "external_prefix_cache_queries", "Prompt tokens that a worker's own cache had not."
        )
        self._external_hits = self._counter(
            "external_prefix_cache_hits", "Prompt tokens found in host memory or a store."
        )
        self._cached = self._counter("prompt_tokens_cached", "Prompt tokens that were not computed.")
        self._preemptions = self._counter("num_preemptions", "Sequences put back for want of blocks.")
        self._prompt = self._histogram("request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
        self._generated = self._histogram("request_generation_tokens", "Tokens generated for a request.", _TOKENS)
        self._longest = self._histogram(
            "request_max_num_generation_tokens", "Tokens of a request's longest choice.", _TOKENS
        )
        self._computed = self._histogram(
            "request_prefill_kv_computed_tokens", "Prompt tokens of a request that were computed.", _TOKENS
        )
        self._n = self._histogram("request_params_n", "The n that a request asks for.", _CHOICES)
        self._max_tokens = self._histogram("request_params_max_tokens", "The max_tokens that a request gives.", _TOKENS)
        self._queue = self._histogram(
            "request_queue_time_seconds", "From arrival to the first step with a part of the prompt.", _SECONDS
        )
        self._prefill = self._histogram(
            "request_prefill_time_seconds", "From that step to the first token, a transfer included.", _SECONDS
        )
        self._decode = self._histogram(
            "request_decode_time_seconds", "From the first token of a request to its last.", _SECONDS
        )
        self._inference = self._histogram("request_inference_time_seconds", "Prefill and decode together.", _SECONDS)
        self._a_token = self._histogram(
            "request_time_per_output_token_seconds", "A request's mean time between tokens.", _A_TOKEN_S
        )
        self._step_tokens = [0] * (len(STEP_TOKENS) + 1)
        self._num_step_tokens = 0
        metrics.registry.register(self)

    # -- what happens -------------------------------------------------------------------------------------

    def first_token(self, usage: Usage) -> None:
        """Count where a prompt's KV came from."""
        on_device = usage.num_cached - usage.num_restored
        self._hits.value += on_device
        self._external_queries.value += usage.num_prompt - on_device
        self._external_hits.value += usage.num_restored
        self._cached.value += usage.num_cached
        self._computed.observe(usage.num_prompt - usage.num_cached)

    def finished(self, params: SamplingParams, usage: Usage, longest: int, times: Times | None) -> None:
        """Count a request that has ended; `times` is None for one without a token."""
        self._prompt.observe(usage.num_prompt)
        self._generated.observe(usage.num_completion)
        self._longest.observe(longest)
        self._n.observe(params.n)
        if params.max_tokens is not None:
            self._max_tokens.observe(params.max_tokens)
        if times is None:
            return
        begun_at = times.arrived_at + times.queued_s
        decode_s = times.last_token_at - times.first_token_at
        self._queue.observe(times.queued_s)
        self._prefill.observe(max(times.first_token_at - begun_at, 0.0))
        self._decode.observe(decode_s)
        self._inference.observe(max(times.last_token_at - begun_at, 0.0))
        if longest > 1:
            self._a_token.observe(decode_s / (longest - 1))

    def counted(self, counted: Counted) -> None:
        """Take in what a worker has counted since it last told any router."""
        self._preemptions.value += counted.num_preemptions
        self._num_step_tokens += counted.num_step_tokens
        for i, count in enumerate(counted.steps[: len(self._step_tokens)]):
            self._step_tokens[i] += count

    # -- what is shown ------------------------------------------------------------------------------------

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        for collector, name in self._shown:
            for metric in collector.collect():
                yield self._named(metric, f"vllm:{name}")
        yield from self._gauges()
        yield self._sources()
        yield self._steps()
        yield self._answers()

    def _named(self, metric: Metric, name: str) -> Metric:
        copy = Metric(name, metric.documentation, metric.type)
        copy.samples = [
            Sample(name + each.name[len(metric.name) :], {**each.labels, "engine": ENGINE}, each.value)
            for each in metric.samples
        ]
        return copy

    def _gauges(self) -> Iterator[Metric]:
        seen = self.seen
        usage = 1 - seen.num_free_blocks / seen.num_blocks if seen.num_blocks else 0.0
        yield self._gauge("num_requests_running", "Requests being answered.", seen.num_running)
        yield self._gauge("num_requests_waiting", "Requests accepted and without a token yet.", seen.num_waiting)
        yield self._gauge("kv_cache_usage_perc", "Share of all workers' KV blocks in use.", usage)
        yield self._gauge("gpu_cache_usage_perc", "kv_cache_usage_perc under its older name.", usage)
        waits = {"capacity": seen.num_waiting - seen.num_deferred, "deferred": seen.num_deferred}
        yield self._by_label(
            "num_requests_waiting_by_reason", "Requests without a token; deferred: no worker is there.", "reason", waits
        )
        # without any worker the series is away, which vLLM's boards show as down; weights stay where they are
        is_there = seen.is_awake or seen.is_asleep
        states = {"awake": int(seen.is_awake), "weights_offloaded": 0, "discard_all": 0} if is_there else {}
        yield self._by_label(
            "engine_sleep_state", "Whether a worker takes requests; asleep: each state is 0.", "sleep_state", states
        )
        names = ("model_name", "engine", "block_size", "num_gpu_blocks")
        info = GaugeMetricFamily("vllm:cache_config_info", "The KV cache of all workers together.", labels=names)
        if seen.block_size:
            info.add_metric([self._model_name, ENGINE, str(seen.block_size), str(seen.num_blocks)], 1)
        yield info

    def _sources(self) -> Metric:
        """Prompt tokens by where their KV came from. Those that a prefill worker computed for a decode worker were computed."""
        family = CounterMetricFamily(
            "vllm:prompt_tokens_by_source",
            "Prompt tokens by where their KV came from; external: host memory, or a store.",
            labels=["model_name", "engine", "source"],
        )
        by_source = {
            "local_compute": self._external_queries.value - self._external_hits.value,
            "local_cache_hit": self._hits.value,
            "external_kv_transfer": self._external_hits.value,
        }
        for source, count in by_source.items():
            family.add_metric([self._model_name, ENGINE, source], count)
        return family

    def _steps(self) -> Metric:
        family = HistogramMetricFamily(
            "vllm:iteration_tokens_total", "Tokens that a step of a worker computes.", labels=["model_name", "engine"]
        )
        total, rows = 0, []
        for edge, count in zip((*map(str, map(float, STEP_TOKENS)), "+Inf"), self._step_tokens, strict=True):
            total += count
            rows.append((edge, total))
        family.add_metric([self._model_name, ENGINE], buckets=rows, sum_value=self._num_step_tokens)
        return family

    def _answers(self) -> Metric:
        """What vLLM's web framework counts."""
        counts: Counter[tuple[str, str]] = Counter()
        for metric in self._http_requests.collector.collect():
            for each in metric.samples:
                counts[each.labels["route"], f"{each.labels['status'][:1]}xx"] += int(each.value)
        family = CounterMetricFamily(
            "http_requests", "HTTP answers, by route and kind of status.", labels=["handler", "status"]
        )
        for labels, count in counts.items():
            family.add_metric(labels, count)
        return family

    # -- how they are made --------------------------------------------------------------------------------

    def _counter(self, name: str, help_text: str) -> PlainCounter:
        return self._show(PlainCounter(f"vllm:{name}", help_text, self._model_name), name)

    def _histogram(self, name: str, help_text: str, buckets: Sequence[float]) -> TokenHistogram:
        return self._show(TokenHistogram(f"vllm:{name}", help_text, self._model_name, buckets), name)

    def _show(self, made: _Made, name: str) -> _Made:
        self._shown.append((made, name))
        return made

    def _gauge(self, name: str, help_text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"vllm:{name}", help_text, labels=["model_name", "engine"])
        family.add_metric([self._model_name, ENGINE], value)
        return family

    def _by_label(self, name: str, help_text: str, label: str, values: dict[str, int]) -> Metric:
        family = GaugeMetricFamily(f"vllm:{name}", help_text, labels=["model_name", "engine", label])
        for value, count in values.items():
            family.add_metric([self._model_name, ENGINE, value], count)
        return family
