"""The face of a worker: HTTP, Redis and the life of the engine process. No torch, so a step never waits for it.

    GET /health   200 while the engine process's loop turns; 503 while it starts, is stuck or is gone
    GET /ready    200 when a request sent now would be served: healthy, not draining, refused by no router
    GET /metrics  Prometheus
    GET /info     what the worker announces

The face starts the engine process by its module's name, hears it over a socket pair, writes its lease and its block log,
and starts it anew, with back-off, when it dies or is stuck. What is stuck is told to routers by the engine process itself, and
its lease is not renewed. SIGTERM drains: withdrawn first, then nothing new, then the end.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence

import msgspec
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from baton.errors import ConfigError
from baton.keeper import keep
from baton.listener import bind_tcp, bracketed
from baton.logs import get_logger
from baton.messages import Load, WorkerInfo
from baton.metrics import CONTENT_TYPE, LabelledCounter, WorkerMetrics
from baton.registry import Registry
from baton.tied import tied
from baton.worker.announcer import Announcer
from baton.worker.engine_watch import EngineWatch
from baton.worker.link import MAX_NBYTES, frame, read_frame, to_face
from baton.worker.served import served
from baton.worker.stats import Assignment, Drain, Failed, Logged, Pulse, Ready, Stats

DRAIN_MARGIN_S = 15.0
"""Beyond the worker's own drain time, for leases to run out, before the engine process is killed."""

log = get_logger("face")


class Face:
    """One worker, seen from outside. Build it, then `await serve()`."""

    def __init__(self, assignment: Assignment, command: Sequence[str], registry: Registry | None) -> None:
        """`command` starts the engine process; the descriptor of its link is appended to it."""
        self._assignment = assignment
        self._worker = assignment.worker
        self._command = list(command)
        self._metrics = WorkerMetrics(assignment.model_name)
        self.info: WorkerInfo | None = None
        self._stats = Stats()
        self._watch = EngineWatch(assignment.worker_id)
        self._draining = asyncio.Event()
        self._announcer = Announcer(registry, self._serving, self._draining)
        self._failure: str | None = None
        self.app = self._make_app()

    # -- HTTP ---------------------------------------------------------------------------------------------

    def _make_app(self) -> FastAPI:
        app = FastAPI(title="Baton worker", docs_url=None, redoc_url=None, openapi_url=None)

        @app.get("/health")
        async def health() -> JSONResponse:
            why = self.why_unhealthy()
            return JSONResponse({"status": why or "ok"}, 503 if why else 200)

        @app.get("/ready")
        async def ready() -> JSONResponse:
            why = self.why_unhealthy() or self.why_not_ready()
            return JSONResponse({"status": why or "ready"}, 503 if why else 200)

        @app.get("/info")
        async def info() -> Response:
            if self.info is None:
                return JSONResponse({"status": "starting"}, 503)
            return Response(msgspec.json.encode(self.info), media_type="application/json")

        @app.get("/metrics")
        async def metrics() -> Response:
            self._fill_metrics()
            return Response(self._metrics.render(), media_type=CONTENT_TYPE)

        return app

    def why_unhealthy(self) -> str | None:
        """What is wrong with the engine process; None: its loop turns."""
        return "starting" if self.info is None else self._watch.why_stuck

    def why_not_ready(self) -> str | None:
        """Why a new request would not be served; None: it would."""
        if self._draining.is_set() or self._stats.load.draining:
            return "draining"
        if self._announcer.conflict:
            return self._announcer.conflict
        if self._stats.refusal:
            return f"refused by the router: {self._stats.refusal}"
        return None

    def _fill_metrics(self) -> None:
        stats, metrics = self._stats, self._metrics
        metrics.num_requests_running.set(stats.load.num_running)
        metrics.num_requests_waiting.set(stats.load.num_waiting)
        metrics.num_prompt_tokens_waiting.set(stats.load.waiting_tokens)
        total = stats.blocks_free + stats.blocks_cached + stats.blocks_held
        for usage in (metrics.kv_cache_usage_perc, metrics.gpu_cache_usage_perc):
            usage.set(stats.blocks_held / total if total else 0.0)
        for state, count in (
            ("free", stats.blocks_free),
            ("cached", stats.blocks_cached),
            ("held", stats.blocks_held),
            ("total", stats.load.kv_total_blocks),
        ):
            metrics.kv_blocks.labels(state).set(count)
        metrics.kv_fetches_queued.set(stats.kv_fetches_queued)
        metrics.kv_fetch_queued_seconds.set(stats.kv_fetch_queued_seconds)
        for state, count in stats.host_blocks.items():
            metrics.host_kv_blocks.labels(state).set(count)
        metrics.kv_leases_held.set(stats.kv_leases_held)
        metrics.kv_stranded_bytes.set(stats.kv_stranded_bytes)

    def _take_stats(self, stats: Stats) -> None:
        """Take a report in; counters move by what it has more than the one before."""
        before, metrics = self._stats, self._metrics
        metrics.prefix_cache_queries.inc(stats.prefix_cache_queries - before.prefix_cache_queries)
        metrics.prefix_cache_hits.inc(stats.prefix_cache_hits - before.prefix_cache_hits)
        metrics.prompt_tokens.inc(stats.prompt_tokens - before.prompt_tokens)
        metrics.generation_tokens.inc(stats.generation_tokens - before.generation_tokens)
        metrics.num_preemptions.inc(stats.num_preemptions - before.num_preemptions)
        metrics.kv_transfer_bytes.inc(stats.kv_transfer_bytes - before.kv_transfer_bytes)
        metrics.kv_transfer_sent_bytes.inc(stats.kv_transfer_sent_bytes - before.kv_transfer_sent_bytes)
        metrics.kv_integrity_failures.inc(stats.kv_integrity_failures - before.kv_integrity_failures)
        metrics.stale_messages.inc(stats.stale_messages - before.stale_messages)
        _count_on(metrics.prompt_tokens_by_source, stats.prompt_tokens_by_source, before.prompt_tokens_by_source)
        _count_on(metrics.host_kv_moves, stats.host_kv_moves, before.host_kv_moves)
        _count_on(metrics.kv_fetches, stats.kv_fetches, before.kv_fetches)
        _count_on(metrics.kv_releases, stats.kv_releases, before.kv_releases)
        for seconds, exposed_s in stats.transfers:
            metrics.kv_transfer_seconds.observe(seconds)
            metrics.kv_transfer_exposed_seconds.observe(exposed_s)
        for phase, seconds in stats.phases:
            metrics.phase_seconds.observe(phase, seconds)
            if phase == "queue":
                metrics.request_queue_time_seconds.observe(seconds)
        self._stats = stats

    # -- life ---------------------------------------------------------------------------------------------

    async def serve(self) -> int:
        """Serve until drained; return the exit status.

        Raises:
            ConfigError: the address is taken, or the engine cannot start as configured.
        """
        listener = bind_tcp(self._worker.host, self._worker.port)
        self._assignment.http = f"http://{bracketed(self._worker.reached_at)}:{listener.getsockname()[1]}"
        async with served(self.app, listener, self._announcer, self._draining):
            status = await keep(
                self._run_engine,
                until=self._draining,
                is_last=lambda status: status == 0 or self._failure is not None,
                on_death=self._note_death,
            )
        if self._failure is not None:
            raise ConfigError(self._failure)
        return 1 if status else 0

    def _note_death(self, status: int, delay_s: float) -> None:
        self._metrics.engine_restarts.inc("stuck" if self._watch.has_ended_it else "died")
        log.error("engine_died", worker_id=self._assignment.worker_id, status=status, restart_in_s=delay_s)

    async def _run_engine(self) -> int:
        """Start one engine process and hear it to its end; return its status."""
        ours, theirs = socket.socketpair()
        process = await asyncio.create_subprocess_exec(
            *tied([*self._command, str(theirs.fileno())]), pass_fds=(theirs.fileno(),), start_new_session=True
        )
        theirs.close()
        reader, link = await asyncio.open_unix_connection(sock=ours, limit=MAX_NBYTES)
        link.write(frame(self._assignment))
        self._watch = EngineWatch(self._assignment.worker_id)
        hearing = asyncio.create_task(self._hear(reader))
        draining = asyncio.create_task(self._drain_engine(process, link))
        watching = asyncio.create_task(self._watch.end_if_stuck(process, self._draining))
        try:
            status = await process.wait()
            await asyncio.wait_for(asyncio.gather(hearing, return_exceptions=True), 2.0)
        finally:
            for task in (hearing, draining, watching):
                task.cancel()
            link.close()
            if process.returncode is None:
                process.kill()
            await self._withdraw()
            self.info = None
            self._stats = Stats()  # the next engine process counts from zero
        return status

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        """Take what the engine process says, to its end."""
        while True:
            try:
                message = to_face.decode(await read_frame(reader))
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            match message:
                case Stats():
                    self._take_stats(message)
                case Pulse():
                    self._watch.heard(message)
                case Ready():
                    self.info = message.info
                case Logged():
                    self._announcer.add(message.entry)
                case Failed():
                    self._failure = message.message

    async def _drain_engine(self, process: asyncio.subprocess.Process, link: asyncio.StreamWriter) -> None:
        """Once told to: withdraw, so that nobody new comes, have the engine drain, kill it if it does not end."""
        await self._draining.wait()
        await self._withdraw()
        link.write(frame(Drain()))
        try:
            await asyncio.wait_for(process.wait(), self._worker.drain_s + self._worker.lease_s + DRAIN_MARGIN_S)
        except TimeoutError:
            log.error("drain_too_long", worker_id=self._assignment.worker_id)
            process.kill()

    def _serving(self) -> tuple[WorkerInfo, Load] | None:
        return None if self.info is None or self.why_unhealthy() is not None else (self.info, self._stats.load)

    async def _withdraw(self) -> None:
        if self.info is not None:
            await self._announcer.withdraw(self.info)


def _count_on(counter: LabelledCounter, counts: Mapping[str, int], before: Mapping[str, int]) -> None:
    for label, count in counts.items():
        counter.inc(label, by=count - before.get(label, 0))
