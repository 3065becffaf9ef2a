"""`baton top`: workers and requests, live in a terminal, from what the router and the workers tell.

The router names its workers at /debug/workers, and those that are gone; speeds come from the difference of two readings of
/metrics. A worker whose /metrics cannot be reached from here (in another network) is shown with what the router knows of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from baton.errors import ConfigError
from baton.histograms import between, quantile
from baton.own_http import client_of

WINDOW_S = 60.0
"""Latencies are those of the last minute."""
_TIMEOUT_S = 2.0
_BAR_LEN = 5
_COLUMNS = ("worker", "legs", "run", "wait", "KV use", "tok/s", "prompt/s", "hits", "KV in/s", "out/s", "held")
_MAX_LOST = 3
"""Workers that are gone, the last ones."""
_REFUSED = frozenset(("400", "404", "408", "413", "422", "429", "431"))
_TOLD_BY_WORKER = 6
"""The last columns, which the router does not know."""


class Readings:
    """The `baton:` samples of one /metrics, summed over the labels that nobody asks for."""

    def __init__(self, text: str) -> None:
        self._samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(text):
            if family.name.startswith("baton:"):
                for sample in family.samples:
                    name = sample.name.removeprefix("baton:")
                    self._samples.setdefault(name, []).append((sample.labels, sample.value))

    def total(self, name: str, **labels: str) -> float:
        """Add up a series' samples that have these labels; 0 if there is none."""
        return sum(value for its, value in self._samples.get(name, ()) if labels.items() <= its.items())

    def refused(self) -> float:
        """Add up the requests for answers that were refused, for whatever cause but the key."""
        answers = self._samples.get("http_requests_total", ())
        return sum(n for its, n in answers if its["status"] in _REFUSED and its["route"].startswith("/v1/"))

    def moved(self, old: Readings, name: str, **labels: str) -> float:
        """How much a counter has grown since; 0 if it began anew."""
        return max(self.total(name, **labels) - old.total(name, **labels), 0.0)

    def buckets(self, name: str) -> list[tuple[float, float]]:
        """Return a histogram's upper edges and how many values were at most that."""
        samples = self._samples.get(f"{name}_bucket", ())
        return sorted((float(labels["le"]), value) for labels, value in samples)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that was told at one time."""

    at: float
    router: Readings
    workers: Sequence[dict[str, Any]]
    """As /debug/workers has them."""
    of_worker: dict[str, Readings]
    """By incarnation, of workers and stores; without those that could not be reached."""
    stores: Sequence[dict[str, Any]] = ()
    """Stores of hosts, in the same form."""
    lost: Sequence[dict[str, Any]] = ()
    """Workers that are gone, the newest first."""
    unix_time: float = 0.0
    """The router's."""


NOTHING = Readings("")
THE_START = Snapshot(0.0, NOTHING, (), {})
"""When nothing had been counted."""


class Observer:
    """Asks the router, and the workers that it names."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}  # for the router alone
        self._client = client_of(httpx.AsyncClient, url, timeout=_TIMEOUT_S)

    async def close(self) -> None:
        """Close connections."""
        await self._client.aclose()

    async def look(self) -> Snapshot:
        """Read everything once.

        Raises:
            ConfigError: no router answers there, or it wants another key.
        """
        told = await self._ask("/debug/workers")
        metrics = await self._ask("/metrics")
        try:
            body = told.json()
            workers, stores = body["workers"], body.get("stores", ())
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"url={self._url!r} is not valid: what answers there is no Baton router.") from None
        services = [*workers, *stores]
        readings = await asyncio.gather(*(self._read(service["http"]) for service in services))
        by_worker = zip((service["incarnation"] for service in services), readings, strict=True)
        of_worker = {incarnation: reading for incarnation, reading in by_worker if reading is not None}
        lost, now = body.get("lost", ()), body.get("now", 0.0)
        return Snapshot(time.monotonic(), Readings(metrics.text), workers, of_worker, stores, lost, now)

    async def _ask(self, path: str) -> httpx.Response:
        try:
            answer = await self._client.get(self._url + path, headers=self._headers)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = f"does not answer: {str(error) or type(error).__name__}"
            way_out = "Start a router (`baton up`), or name it with --url."
            raise ConfigError(f"url={self._url!r} {reason}. {way_out}") from None
        if answer.status_code == 401:
            wanted = "knows no such key" if self._headers else "wants a key"
            raise ConfigError(f"The router at {self._url} {wanted}. Give its key with --api-key or BATON_API_KEY.")
        if answer.status_code != 200:
            reason = f"{path} answers {answer.status_code}, so this is no Baton router."
            raise ConfigError(f"url={self._url!r} is not valid: {reason}")
        return answer

    async def _read(self, http: str) -> Readings | None:
        with contextlib.suppress(httpx.HTTPError, httpx.InvalidURL, ValueError):
            answer = await self._client.get(f"{http}/metrics")
            if answer.status_code == 200:
                return Readings(answer.text)
        return None


async def run(url: str, *, api_key: str | None, interval_s: float, once: bool) -> None:
    """Show frames until interrupted, or one.

    Raises:
        ConfigError: no router answers at the start.
    """
    observer, console = Observer(url, api_key), Console()
    try:
        first = await observer.look()
        await asyncio.sleep(interval_s)
        if once or not console.is_terminal:
            console.print(frame(url, first, await observer.look(), THE_START))
            return
        snapshots = deque([first, first], maxlen=max(2, math.ceil(WINDOW_S / interval_s) + 1))
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                trouble = ""
                try:
                    snapshots.append(await observer.look())
                except ConfigError as error:
                    trouble = str(error)
                live.update(frame(url, snapshots[-2], snapshots[-1], snapshots[0], trouble), refresh=True)
                await asyncio.sleep(interval_s)
    finally:
        await observer.close()


# -- one frame ------------------------------------------------------------------------------------------------


def frame(url: str, before: Snapshot, now: Snapshot, since: Snapshot, trouble: str = "") -> RenderableType:
    """Draw what is now, with speeds since `before`, latencies and events since `since`."""
    lines = [_headline(url, before, now), *([Text(trouble, style="bold red")] if trouble else [])]
    return Group(
        *lines, _latencies(now, since), _events(now, since), _workers(before, now), *_stores(before, now), *_lost(now)
    )


def _headline(url: str, before: Snapshot, now: Snapshot) -> Text:
    router, seconds = now.router, now.at - before.at
    tokens = router.moved(before.router, "generation_tokens_total")
    ended = router.moved(before.router, "request_success_total")
    line = Text.assemble(("baton top  ", "bold"), (url, "dim"))
    up = router.total("registry_up")
    if not math.isnan(up):
        line.append("   Redis ")
        line.append("answers" if up else "does not answer", "green" if up else "bold red")
    return line.append(
        f"\n{router.total('num_requests_running'):.0f} running, {router.total('num_requests_waiting'):.0f} waiting, "
        f"{_speed(ended, seconds)} requests/s, {_speed(tokens, seconds)} tokens/s"
    )


def _latencies(now: Snapshot, since: Snapshot) -> Table:
    table = _table(_window(now, since), "count", "p50", "p90", "p99", title="Requests")
    for title, name in (
        ("time to first token", "time_to_first_token_seconds"),
        ("inter-token latency", "inter_token_latency_seconds"),
        ("whole answer", "e2e_request_latency_seconds"),
    ):
        buckets = between(since.router.buckets(name), now.router.buckets(name))
        count = buckets[-1][1] if buckets else 0.0
        table.add_row(title, f"{count:.0f}", *(_time(quantile(buckets, q)) for q in (0.5, 0.9, 0.99)))
    return table


def _window(now: Snapshot, since: Snapshot) -> str:
    return "since the start" if since is THE_START else f"last {now.at - since.at:.0f} s"


def _events(now: Snapshot, since: Snapshot) -> Text:
    """Say what has happened since, each red if it should not."""
    count = partial(now.router.moved, since.router)
    failures = count("kv_integrity_failures_total")
    for incarnation, reading in now.of_worker.items():
        failures += reading.moved(since.of_worker.get(incarnation, NOTHING), "kv_integrity_failures_total")
    line = Text()
    for title, value, is_wrong in (
        ("remote", count("route_decisions_total", path="remote"), False),
        ("local", count("route_decisions_total", path="local"), False),
        ("replays", count("replays_total"), True),
        ("refused", max(now.router.refused() - since.router.refused(), 0.0), True),
        ("errors", count("request_success_total", finished_reason="error"), True),
        ("integrity failures", failures, True),
    ):
        line.append(f"{title} ", "dim")
        line.append(f"{value:.0f}  ", "bold red" if is_wrong and value else "")
    return line


def _workers(before: Snapshot, now: Snapshot) -> RenderableType:
    if not now.workers:
        return Text("No worker is live. Requests wait for one.", style="bold red")
    table = _table(*_COLUMNS, title="Workers")
    for worker in sorted(now.workers, key=lambda w: (min(w["legs"], default=""), w["id"]), reverse=True):
        legs = "+".join(sorted(worker["legs"], reverse=True))
        state = "" if worker["state"] == "live" else f" ({worker['state']})"
        table.add_row(
            worker["id"],
            Text(legs + state, style="yellow" if state else ""),
            str(worker["running"]),
            str(worker["waiting"]),
            _bar(worker["kv_usage"]),
            *_speeds(worker["incarnation"], before, now),
        )
    return table


def _stores(before: Snapshot, now: Snapshot) -> list[Text]:
    """Say of each store what it keeps, and how much workers take from it."""
    lines = []
    for store in now.stores:
        line = Text.assemble((store["id"], ""), (" store ", "dim"))
        new = now.of_worker.get(store["incarnation"])
        if new is not None:
            moved, seconds = partial(new.moved, before.of_worker.get(store["incarnation"], new)), now.at - before.at
            lent, disk = (_speed(moved("kv_store_lookups_total", result=r), seconds) for r in ("memory", "disk"))
            kept, on_disk = (_size(new.total("kv_store_used_bytes", tier=tier)) for tier in ("memory", "disk"))
            line.append(
                f"{new.total('kv_store_clients'):.0f} workers, {kept} in memory, {on_disk} on disk, blocks/s: "
                f"{_speed(moved('kv_store_stored_blocks_total'), seconds)} stored, {lent} lent, {disk} read from disk"
            )
        lines.append(line)
    return lines


def _lost(now: Snapshot) -> list[Text]:
    """Name the workers that are gone, with when and why."""
    lines = []
    for worker in now.lost[:_MAX_LOST]:
        at, legs = time.strftime("%H:%M:%S", time.localtime(worker["at"])), "+".join(worker["legs"])
        what = f"{worker['state']} {at}, {_ago(now.unix_time - worker['at'])}: {worker['reason']}"
        if worker["in_flight"]:
            what += f", {worker['in_flight']} in flight went on elsewhere"
        lines.append(Text(f"{worker['id']} {legs} {what}", style="bold red" if worker["state"] == "died" else "dim"))
    if len(now.lost) > _MAX_LOST:
        lines.append(Text(f"and {len(now.lost) - _MAX_LOST} before", style="dim"))
    return lines


def _speeds(incarnation: str, before: Snapshot, now: Snapshot) -> list[str]:
    """Return a worker's cells that need its /metrics; dashes where they cannot be reached."""
    new = now.of_worker.get(incarnation)
    if new is None:
        return ["–"] * _TOLD_BY_WORKER
    moved, seconds = partial(new.moved, before.of_worker.get(incarnation, new)), now.at - before.at
    hits, queries = new.total("prefix_cache_hits_total"), new.total("prefix_cache_queries_total")
    return [
        _speed(moved("generation_tokens_total"), seconds),
        _speed(moved("prompt_tokens_by_source_total", source="local_compute"), seconds),
        f"{hits / queries:.0%}" if queries else "–",
        _bandwidth(moved("kv_transfer_bytes_total"), seconds),
        _bandwidth(moved("kv_transfer_sent_bytes_total"), seconds),
        f"{new.total('kv_leases_held'):.0f}",
    ]


def _table(*columns: str, title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    name, *others = columns
    # where it is narrow, names give way to numbers
    table.add_column(name, overflow="fold", header_style="dim")
    for column in others:
        table.add_column(column, justify="left" if column == "legs" else "right", no_wrap=True, header_style="dim")
    return table


# -- numbers --------------------------------------------------------------------------------------------------


def _speed(count: float, seconds: float) -> str:
    value = count / seconds if seconds > 0 else 0.0
    return f"{value:,.0f}" if value >= 100 or not value else f"{value:.1f}"


def _bandwidth(nbytes: float, seconds: float) -> str:
    value = nbytes / seconds if seconds > 0 else 0.0
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"


def _size(nbytes: float) -> str:
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.0f} MiB"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def _ago(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"


def _bar(share: float) -> Text:
    filled = round(_BAR_LEN * share)
    style = "red" if share > 0.95 else "yellow" if share > 0.8 else "green"
    return Text.assemble(("█" * filled, style), ("░" * (_BAR_LEN - filled), "dim"), f" {share:4.0%}")
