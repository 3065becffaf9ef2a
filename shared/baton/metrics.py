"""Every Prometheus series of ours, named once. One registry a process; vLLM's names are the router's (`vllm_series.py`).

A process makes `RouterMetrics` or `WorkerMetrics`, keeps it, and answers /metrics with `render()`. What is counted per
token is counted in plain integers and becomes a metric only when somebody reads it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate, product
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "baton:"
disable_created_metrics()  # type: ignore[no-untyped-call]

_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 640)
_LAG = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5, 5, 10)
_INTER_TOKEN = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)
_REPLAYS = (
    *("prefill_lost", "decode_lost", "leg_lost", "moved", "draining", "transfer", "recomputed", "integrity", "gap"),
    *("out_of_blocks", "queue_full"),
)

_Made = TypeVar("_Made", bound=Collector)


class TokenHistogram(Collector):
    """A histogram for what happens with every token: an observation is one bisection and two additions."""

    __slots__ = ("_buckets", "_counts", "_help", "_model_name", "_name", "_sum")

    def __init__(self, name: str, help_text: str, model_name: str, buckets: Sequence[float]) -> None:
        self._name, self._help, self._model_name = name, help_text, model_name
        self._buckets = [*map(float, buckets), float("inf")]
        self._counts = [0] * len(self._buckets)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._buckets, value)] += 1
        self._sum += value

    def buckets(self) -> list[tuple[float, int]]:
        """Return each upper edge with how many values were at most that."""
        return list(zip(self._buckets, accumulate(self._counts), strict=True))

    def collect(self) -> Iterable[Metric]:
        edges = (*map(repr, self._buckets[:-1]), "+Inf")
        rows = list(zip(edges, accumulate(self._counts), strict=True))
        family = HistogramMetricFamily(self._name, self._help, labels=["model_name"])
        family.add_metric([self._model_name], buckets=rows, sum_value=self._sum)
        return [family]


class PlainCounter(Collector):
    """A counter for one thread, without the library's lock: add to `value` for every token, or call `inc`."""

    __slots__ = ("_help", "_model_name", "_name", "value")

    def __init__(self, name: str, help_text: str, model_name: str) -> None:
        self._name, self._help, self._model_name = name, help_text, model_name
        self.value = 0

    def inc(self, by: int = 1) -> None:
        """Add to the count."""
        self.value += by

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self._name, self._help, labels=["model_name"])
        family.add_metric([self._model_name], self.value)
        return [family]


class LabelledCounter:
    """A counter with more labels than the model's name: `inc("reason")`."""

    def __init__(self, counter: Counter, model_name: str) -> None:
        self._counter = counter
        self._model_name = model_name
        self.total = 0.0
        """Of all series."""

    def inc(self, *labels: str, by: float = 1) -> None:
        """Add to the series of these label values."""
        self.total += by
        self._counter.labels(self._model_name, *labels).inc(by)

    @property
    def collector(self) -> Collector:
        """What gives its samples."""
        return self._counter

    def value(self, *labels: str) -> float:
        """Present count, for tests and /debug."""
        value: float = self._counter.labels(self._model_name, *labels)._value.get()
        return value


class LabelledHistogram:
    """A histogram with one more label: `observe("phase", seconds)`."""

    def __init__(self, histogram: Histogram, model_name: str) -> None:
        self._histogram = histogram
        self._model_name = model_name

    def observe(self, label: str, value: float) -> None:
        """Count one value under `label`."""
        self._histogram.labels(self._model_name, label).observe(value)


class _Registered:
    """How series are made, all labelled with the model's name."""

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self.model_name = model_name

    def render(self) -> bytes:
        """Make the text of /metrics."""
        return generate_latest(self.registry)

    def _register(self, made: _Made) -> _Made:
        self.registry.register(made)
        return made

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return self._register(Gauge(_PREFIX + name, help_text, ["model_name"], registry=None)).labels(self.model_name)

    def _counter(self, name: str, help_text: str) -> PlainCounter:
        return self._register(PlainCounter(_PREFIX + name, help_text, self.model_name))

    def _labelled_counter(self, name: str, help_text: str, **labels: Sequence[str]) -> LabelledCounter:
        """`labels`: each with its known values, counted from zero on, so that the first event shows in rate() too."""
        counter = Counter(_PREFIX + name, help_text, ["model_name", *labels], registry=None)
        labelled = LabelledCounter(self._register(counter), self.model_name)
        for values in product(*labels.values()):
            labelled.inc(*values, by=0)
        return labelled

    def _histogram(self, name: str, help_text: str, *, buckets: Sequence[float] = _LATENCY) -> TokenHistogram:
        return self._register(TokenHistogram(_PREFIX + name, help_text, self.model_name, buckets))


class _Series(_Registered):
    """Those that routers and workers both have."""

    def __init__(self, model_name: str) -> None:
        super().__init__(model_name)
        self.num_requests_running = self._gauge("num_requests_running", "Requests being answered.")
        self.num_requests_waiting = self._gauge("num_requests_waiting", "Requests accepted and without a token yet.")
        self.prefix_cache_queries = self._counter(
            "prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        )
        self.prefix_cache_hits = self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens taken.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self.kv_integrity_failures = self._counter(
            "kv_integrity_failures", "Blocks, frames or tokens that failed a check."
        )
        self.stale_messages = self._counter(
            "stale_messages", "Messages of a closed epoch or an unknown peer that were dropped."
        )
        self.request_queue_time_seconds = self._histogram(
            "request_queue_time_seconds", "Router: from arrival to being sent to a worker. Worker: in its queue."
        )
        phases = Histogram(
            f"{_PREFIX}phase_seconds",
            "Phases of a request. Router: route, queue, first_token, held (a first token, until the second can follow), "
            "generate. Worker: queue, compute (to its first token), and prefill or decode, from the start to the last block given back.",
            ["model_name", "phase"],
            registry=self.registry,
            buckets=_LATENCY,
        )
        self.phase_seconds = LabelledHistogram(phases, model_name)


class RouterMetrics(_Series):
    """What a router counts."""

    def __init__(self, model_name: str) -> None:
        super().__init__(model_name)
        self.request_success = self._labelled_counter(
            "request_success", "Requests ended, by reason.", finished_reason=("stop", "length", "abort", "error")
        )
        self.time_to_first_token_seconds = self._histogram(
            "time_to_first_token_seconds", "From arrival to the first token."
        )
        self.inter_token_latency_seconds = self._histogram(
            "inter_token_latency_seconds", "Between tokens of a choice.", buckets=_INTER_TOKEN
        )
        self.e2e_request_latency_seconds = self._histogram("e2e_request_latency_seconds", "From arrival to the end.")
        self.replays = self._labelled_counter(
            "replays", "Requests sent again under a higher epoch, by reason.", reason=_REPLAYS
        )
        self.admission_refusals = self._labelled_counter(
            "admission_refusals",
            "Requests refused before they queued, by reason.",
            reason=("ttft", "queue", "tenant", "streams", "queued_tokens", "kv_blocks"),
        )
        self.route_decisions = self._labelled_counter(
            "route_decisions", "Requests by the path that they took.", path=("local", "remote")
        )
        self.http_requests = self._labelled_counter(
            "http_requests", "HTTP answers, by route and status.", route=(), status=()
        )
        self.client_disconnects = self._counter("client_disconnects", "Requests whose client left.")
        self.slow_clients = self._counter("slow_clients", "Streams ended because the client did not read.")
        self.workers = Gauge(f"{_PREFIX}workers", "Live workers, by leg.", ["leg"], registry=self.registry)
        for leg in ("prefill", "decode"):
            self.workers.labels(leg)
        self.index_blocks = self._gauge("index_blocks", "Block hashes in the prefix index.")
        self.registry_up = self._gauge("registry_up", "Whether Redis answers; NaN where none is used.")
        self.event_loop_lag_seconds = self._histogram(
            "event_loop_lag_seconds", "How late the event loop came to a timer that is due every 10 ms.", buckets=_LAG
        )
        self.streams_open = self._gauge("streams_open", "Streams open to clients.")
        self.event_loop_tasks = self._gauge(
            "event_loop_tasks", "Tasks of the event loop: what runs beside, and a few a request."
        )


class WorkerMetrics(_Series):
    """What a prefill or decode worker counts."""

    def __init__(self, model_name: str) -> None:
        super().__init__(model_name)
        self.num_prompt_tokens_waiting = self._gauge(
            "num_prompt_tokens_waiting", "Prompt tokens taken and not computed yet."
        )
        self.kv_cache_usage_perc = self._gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.")
        self.gpu_cache_usage_perc = self._gauge("gpu_cache_usage_perc", "kv_cache_usage_perc under its older name.")
        text = "KV blocks by state; free + cached + held = total."
        self.kv_blocks = Gauge(f"{_PREFIX}kv_blocks", text, ["state"], registry=self.registry)
        self.engine_restarts = self._labelled_counter(
            "engine_restarts", "Engine processes started anew, by why the one before ended.", reason=("died", "stuck")
        )
        self.num_preemptions = self._counter("num_preemptions", "Sequences put back for want of blocks.")
        self.prompt_tokens_by_source = self._labelled_counter(
            "prompt_tokens_by_source",
            "Prompt tokens by where their KV came from: computed, own prefix cache, host memory behind it, another worker.",
            source=("local_compute", "local_cache_hit", "host_memory", "external_kv_transfer"),
        )
        text = "Blocks of host memory behind the device's KV blocks, by state."
        self.host_kv_blocks = Gauge(f"{_PREFIX}host_kv_blocks", text, ["state"], registry=self.registry)
        self.host_kv_moves = self._labelled_counter(
            "host_kv_moves",
            "KV blocks that went to host memory, came back, or came back damaged and were not used.",
            event=("saved", "restored", "damaged"),
        )
        self.kv_transfer_bytes = self._counter("kv_transfer_bytes", "KV bytes fetched and verified.")
        self.kv_transfer_sent_bytes = self._counter("kv_transfer_sent_bytes", "KV bytes sent to other workers.")
        self.kv_fetches = self._labelled_counter(
            "kv_fetches",
            "Prompts whose KV was asked for elsewhere, by how that ended.",
            result=("done", "cancelled", "expired", "silent", "lost", "unreachable"),
        )
        self.kv_fetches_queued = self._gauge(
            "kv_fetches_queued", "Prompts whose KV was asked for elsewhere and is still to be computed there."
        )
        self.kv_fetch_queued_seconds = self._gauge(
            "kv_fetch_queued_seconds", "The longest time until one of them is, as predicted there; 0: not known."
        )
        self.kv_releases = self._labelled_counter(
            "kv_releases",
            "Prompts whose KV was held for a fetch, by how that ended.",
            reason=("fetched", "cancelled", "expired", "failed"),
        )
        self.kv_transfer_seconds = self._histogram("kv_transfer_seconds", "Time of one prompt's KV transfer.")
        self.kv_transfer_exposed_seconds = self._histogram(
            "kv_transfer_exposed_seconds", "Part of a transfer that came after the prefill."
        )
        self.kv_leases_held = self._gauge("kv_leases_held", "Prompts whose KV is held for a fetch.")
        self.kv_stranded_bytes = self._gauge("kv_stranded_bytes", "KV bytes held or reserved for requests that ended.")


class StoreMetrics(_Registered):
    """What a host's store counts."""

    def __init__(self, model_name: str) -> None:
        super().__init__(model_name)
        text = "Places for KV blocks in the store's memory by state; free + writing + cached = total."
        self.blocks = Gauge(f"{_PREFIX}kv_store_blocks", text, ["state"], registry=self.registry)
        self.used_bytes = Gauge(
            f"{_PREFIX}kv_store_used_bytes", "KV bytes kept, by tier.", ["tier"], registry=self.registry
        )
        self.clients = self._gauge("kv_store_clients", "Workers that use the store.")
        self.loans = self._gauge("kv_store_loans", "Lists of blocks that workers read, or wait for.")
        self.lookups = self._labelled_counter(
            "kv_store_lookups",
            "Blocks that workers asked for, by where they were.",
            result=("memory", "disk", "missing"),
        )
        self.stored = self._counter("kv_store_stored_blocks", "Blocks that workers put into the store.")
        self.bad = self._counter("kv_store_bad_blocks", "Blocks that arrived with other bytes than were stored.")
        self.damaged = self._counter("kv_store_damaged_files", "Blocks on disk that were torn or changed, and dropped.")
        self.is_disk_full = self._gauge(
            "kv_store_disk_off", "Whether the disk took no more, so that nothing is written."
        )
