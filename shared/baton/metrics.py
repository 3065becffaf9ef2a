"""Every Prometheus series, named once. One registry a process; series that vLLM has appear under its name too.

A process makes `RouterMetrics` or `WorkerMetrics`, keeps it, and answers /metrics with `render()`. What is counted per
token is counted in plain integers and becomes a metric only when somebody reads it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "baton:"
disable_created_metrics()  # type: ignore[no-untyped-call]

# name: (help, vLLM's name if it has one, further aliases)
_SERIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "num_requests_running": ("Requests being answered.", ("vllm:num_requests_running",)),
    "num_requests_waiting": ("Requests accepted and without a token yet.", ("vllm:num_requests_waiting",)),
    "num_prompt_tokens_waiting": ("Prompt tokens taken and not computed yet.", ()),
    "kv_cache_usage_perc": (
        "Share of KV blocks in use, 0 to 1.",
        ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "baton:gpu_cache_usage_perc"),
    ),
    "prefix_cache_queries": ("Prompt tokens looked up in the prefix cache.", ("vllm:prefix_cache_queries",)),
    "prefix_cache_hits": ("Prompt tokens found in the prefix cache.", ("vllm:prefix_cache_hits",)),
    "prompt_tokens": ("Prompt tokens taken.", ("vllm:prompt_tokens",)),
    "prompt_tokens_by_source": (
        "Prompt tokens by where their KV came from: computed, own prefix cache, another worker.",
        ("vllm:prompt_tokens_by_source",),
    ),
    "generation_tokens": ("Tokens generated.", ("vllm:generation_tokens",)),
    "request_success": ("Requests ended, by reason.", ("vllm:request_success",)),
    "num_preemptions": ("Sequences put back for want of blocks.", ("vllm:num_preemptions",)),
    "time_to_first_token_seconds": ("From arrival to the first token.", ("vllm:time_to_first_token_seconds",)),
    "inter_token_latency_seconds": ("Between tokens of a choice.", ("vllm:inter_token_latency_seconds",)),
    "e2e_request_latency_seconds": ("From arrival to the end.", ("vllm:e2e_request_latency_seconds",)),
    "request_queue_time_seconds": (
        "Router: from arrival to being sent to a worker. Worker: in its queue.",
        ("vllm:request_queue_time_seconds",),
    ),
    "kv_transfer_bytes": ("KV bytes fetched and verified.", ()),
    "kv_transfer_sent_bytes": ("KV bytes sent to other workers.", ()),
    "kv_transfer_seconds": ("Time of one prompt's KV transfer.", ()),
    "kv_transfer_exposed_seconds": ("Part of a transfer that came after the prefill.", ()),
    "kv_fetches": ("Prompts whose KV was asked for elsewhere, by how that ended.", ()),
    "kv_releases": ("Prompts whose KV was held for a fetch, by how that ended.", ()),
    "kv_integrity_failures": ("Blocks, frames or tokens that failed a check.", ()),
    "kv_leases_held": ("Prompts whose KV is held for a fetch.", ()),
    "kv_stranded_bytes": ("KV bytes held or reserved for requests that ended.", ()),
    "kv_blocks": ("KV blocks by state; free + cached + held = total.", ()),
    "replays": ("Requests sent again under a higher epoch, by reason.", ()),
    "stale_messages": ("Messages of a closed epoch or an unknown peer that were dropped.", ()),
    "admission_refusals": ("Requests refused before they queued, by reason.", ()),
    "route_decisions": ("Requests by the path that they took.", ()),
    "phase_seconds": (
        "Phases of a request. Router: route, queue, first_token, generate. Worker: queue, compute (to its first token), "
        "and prefill or decode, from the start to the last block given back.",
        (),
    ),
    "client_disconnects": ("Requests whose client left.", ()),
    "slow_clients": ("Streams ended because the client did not read.", ()),
    "workers": ("Live workers, by leg.", ()),
    "index_blocks": ("Block hashes in the prefix index.", ()),
    "registry_up": ("Whether Redis answers; NaN where none is used.", ()),
    "streams_open": ("Streams open to clients.", ()),
    "http_requests": ("HTTP answers, by route and status.", ()),
}

# Label values that are counted from zero on, so that the first event of a kind shows in rate() too.
_SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
_FINISHED = ("stop", "length", "abort", "error")
_REPLAYS = ("prefill_lost", "decode_lost", "draining", "transfer", "integrity", "gap", "out_of_blocks", "queue_full")
_REFUSALS = ("streams", "queued_tokens", "kv_blocks")
_PATHS = ("local", "remote")
_LEGS = ("prefill", "decode")
_FETCHES = ("done", "cancelled", "expired", "silent", "lost", "unreachable")
_RELEASES = ("fetched", "cancelled", "expired", "failed")

_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 640)
_INTER_TOKEN = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)


class TokenHistogram(Collector):
    """A histogram for what happens with every token: an observation is one bisection and two additions."""

    __slots__ = ("_buckets", "_counts", "_labels", "_name", "_sum")

    def __init__(self, name: str, labels: dict[str, str], buckets: Sequence[float]) -> None:
        self._name = name
        self._labels = labels
        self._buckets = list(buckets)
        self._counts = [0] * (len(self._buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._buckets, value)] += 1
        self._sum += value

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(_PREFIX + self._name, _SERIES[self._name][0], labels=list(self._labels))
        total, rows = 0, []
        for edge, count in zip([*self._buckets, float("inf")], self._counts, strict=True):
            total += count
            rows.append(("+Inf" if edge == float("inf") else repr(float(edge)), total))
        family.add_metric(list(self._labels.values()), buckets=rows, sum_value=self._sum)
        return [family]


class TokenCounter(Collector):
    """A counter for what happens with every token: add to `value`, or call `inc`."""

    __slots__ = ("_labels", "_name", "value")

    def __init__(self, name: str, labels: dict[str, str]) -> None:
        self._name = name
        self._labels = labels
        self.value = 0

    def inc(self, by: int) -> None:
        """Add to the count."""
        self.value += by

    def collect(self) -> Iterable[Metric]:
        metric = Metric(_PREFIX + self._name, _SERIES[self._name][0], "counter")
        metric.add_sample(_PREFIX + self._name + "_total", self._labels, self.value)
        return [metric]


class _Aliases(Collector):
    """The same values under the names that others' dashboards ask for."""

    def __init__(self, collectors: list[Collector]) -> None:
        self._collectors = collectors

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        for collector in self._collectors:
            for metric in collector.collect():
                for alias in _SERIES[metric.name.removeprefix(_PREFIX)][1]:
                    yield _renamed(metric, alias)


def _renamed(metric: Metric, name: str) -> Metric:
    copy = Metric(name, metric.documentation, metric.type)
    copy.samples = [
        Sample(name + sample.name[len(metric.name) :], *sample[1:])
        for sample in metric.samples
        if not sample.name.endswith("_created")
    ]
    return copy


class _Series:
    """What both kinds of process share: making series, all labelled with the model's name."""

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self.model_name = model_name
        self._collectors: list[Collector] = []
        self.num_requests_running = self._gauge("num_requests_running")
        self.num_requests_waiting = self._gauge("num_requests_waiting")
        self.prefix_cache_queries = self._token_counter("prefix_cache_queries")
        self.prefix_cache_hits = self._token_counter("prefix_cache_hits")
        self.prompt_tokens = self._token_counter("prompt_tokens")
        self.generation_tokens = self._token_counter("generation_tokens")
        self.kv_integrity_failures = self._counter("kv_integrity_failures")
        self.stale_messages = self._counter("stale_messages")
        self._make()
        self.registry.register(_Aliases(self._collectors))

    def _make(self) -> None:
        raise NotImplementedError

    def render(self) -> bytes:
        """Make the text of /metrics."""
        return generate_latest(self.registry)

    def _gauge(self, name: str) -> Gauge:
        gauge = Gauge(_PREFIX + name, _SERIES[name][0], ["model_name"], registry=self.registry)
        self._collectors.append(gauge)
        return gauge.labels(self.model_name)

    def _labelled_gauge(self, name: str, label: str, known: Iterable[str] = ()) -> Gauge:
        gauge = Gauge(_PREFIX + name, _SERIES[name][0], [label], registry=self.registry)
        for value in known:
            gauge.labels(value)
        return gauge

    def _counter(self, name: str) -> Counter:
        counter = Counter(_PREFIX + name, _SERIES[name][0], ["model_name"], registry=self.registry)
        self._collectors.append(counter)
        return counter.labels(self.model_name)

    def _labelled_counter(self, name: str, *labels: str, known: Iterable[str] = ()) -> LabelledCounter:
        counter = Counter(_PREFIX + name, _SERIES[name][0], ["model_name", *labels], registry=self.registry)
        self._collectors.append(counter)
        labelled = LabelledCounter(counter, self.model_name)
        for value in known:
            labelled.inc(value, by=0)
        return labelled

    def _token_counter(self, name: str) -> TokenCounter:
        counter = TokenCounter(name, {"model_name": self.model_name})
        self.registry.register(counter)
        self._collectors.append(counter)
        return counter

    def _token_histogram(self, name: str, buckets: Sequence[float]) -> TokenHistogram:
        histogram = TokenHistogram(name, {"model_name": self.model_name}, buckets)
        self.registry.register(histogram)
        self._collectors.append(histogram)
        return histogram

    def _phases(self) -> LabelledHistogram:
        histogram = Histogram(
            _PREFIX + "phase_seconds",
            _SERIES["phase_seconds"][0],
            ["model_name", "phase"],
            registry=self.registry,
            buckets=_LATENCY,
        )
        return LabelledHistogram(histogram, self.model_name)


class LabelledCounter:
    """A counter with more labels than the model's name: `inc("reason")`."""

    def __init__(self, counter: Counter, model_name: str) -> None:
        self._counter = counter
        self._model_name = model_name

    def inc(self, *labels: str, by: float = 1) -> None:
        """Add to the series of these label values."""
        self._counter.labels(self._model_name, *labels).inc(by)

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


class RouterMetrics(_Series):
    """What a router counts."""

    def _make(self) -> None:
        self.request_success = self._labelled_counter("request_success", "finished_reason", known=_FINISHED)
        self.time_to_first_token_seconds = self._token_histogram("time_to_first_token_seconds", _LATENCY)
        self.inter_token_latency_seconds = self._token_histogram("inter_token_latency_seconds", _INTER_TOKEN)
        self.e2e_request_latency_seconds = self._token_histogram("e2e_request_latency_seconds", _LATENCY)
        self.request_queue_time_seconds = self._token_histogram("request_queue_time_seconds", _LATENCY)
        self.replays = self._labelled_counter("replays", "reason", known=_REPLAYS)
        self.admission_refusals = self._labelled_counter("admission_refusals", "reason", known=_REFUSALS)
        self.route_decisions = self._labelled_counter("route_decisions", "path", known=_PATHS)
        self.http_requests = self._labelled_counter("http_requests", "route", "status")
        self.phase_seconds = self._phases()
        self.client_disconnects = self._counter("client_disconnects")
        self.slow_clients = self._counter("slow_clients")
        self.workers = self._labelled_gauge("workers", "leg", known=_LEGS)
        self.index_blocks = self._gauge("index_blocks")
        self.registry_up = self._gauge("registry_up")
        self.streams_open = self._gauge("streams_open")


class WorkerMetrics(_Series):
    """What a prefill or decode worker counts."""

    def _make(self) -> None:
        self.num_prompt_tokens_waiting = self._gauge("num_prompt_tokens_waiting")
        self.kv_cache_usage_perc = self._gauge("kv_cache_usage_perc")
        self.kv_blocks = self._labelled_gauge("kv_blocks", "state")
        self.num_preemptions = self._counter("num_preemptions")
        self.prompt_tokens_by_source = self._labelled_counter("prompt_tokens_by_source", "source", known=_SOURCES)
        self.kv_transfer_bytes = self._counter("kv_transfer_bytes")
        self.kv_transfer_sent_bytes = self._counter("kv_transfer_sent_bytes")
        self.kv_fetches = self._labelled_counter("kv_fetches", "result", known=_FETCHES)
        self.kv_releases = self._labelled_counter("kv_releases", "reason", known=_RELEASES)
        self.kv_transfer_seconds = self._token_histogram("kv_transfer_seconds", _LATENCY)
        self.kv_transfer_exposed_seconds = self._token_histogram("kv_transfer_exposed_seconds", _LATENCY)
        self.request_queue_time_seconds = self._token_histogram("request_queue_time_seconds", _LATENCY)
        self.kv_leases_held = self._gauge("kv_leases_held")
        self.kv_stranded_bytes = self._gauge("kv_stranded_bytes")
        self.phase_seconds = self._phases()
