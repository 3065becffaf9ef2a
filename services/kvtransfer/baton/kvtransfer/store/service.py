"""`baton kvstore` as a process: the thread that serves, its health and figures over HTTP, and what routers are told in Redis.

GET /health   200 while the thread turns
GET /ready    200 once the disk's blocks are found and workers may come
GET /metrics  Prometheus
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from pathlib import Path

import msgspec
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from baton.kvtransfer.store.arena import Arena, StoreFolder, endpoint
from baton.kvtransfer.store.disk import BlockFiles
from baton.kvtransfer.store.settings import StoreConfig, StoreSize
from baton.kvtransfer.store.store import Counts
from baton.kvtransfer.store.thread import StoreThread
from baton.listener import bind_tcp, bracketed
from baton.logs import get_logger
from baton.messages import Load, ModelFacts, WorkerInfo
from baton.metrics import CONTENT_TYPE, StoreMetrics
from baton.registry import BlockLog, Registry
from baton.worker.announcer import Announcer
from baton.worker.served import served

STUCK_S = 10.0
"""After so long without a turn the thread is stuck."""
log = get_logger("kvstore")


class StoreService:
    """One store, seen from outside. Build it, then `await serve()`."""

    def __init__(self, config: StoreConfig, size: StoreSize, model_name: str, store_id: str) -> None:
        """Raises:
        ConfigError: the folder, the memory or the disk is not to be had.
        """
        self._config, self._size = config, size
        self._metrics = StoreMetrics(model_name)
        self._before = Counts()
        self._draining = asyncio.Event()
        self._thread: StoreThread | None = None
        facts = ModelFacts(name=model_name, max_model_len=1, vocab_size=1, block_size=1)
        self._info = WorkerInfo(
            worker_id=store_id,
            incarnation=uuid.uuid4().hex,
            legs=("store",),
            control=endpoint(Path(config.kv_store)),
            kv="",
            layout="",
            model=facts,
        )
        self._log = BlockLog(store_id, self._info.incarnation)
        registry = None if config.redis_url is None else Registry(config.redis_url, model_name, config.redis_password)
        self._announcer = Announcer(registry, self._serving, self._draining)
        self.app = self._make_app()

    def _make_app(self) -> FastAPI:
        app = FastAPI(title="Baton store", docs_url=None, redoc_url=None, openapi_url=None)

        @app.get("/health")
        async def health() -> JSONResponse:
            is_stuck = self._thread is not None and time.monotonic() - self._thread.beat_at > STUCK_S
            return JSONResponse({"status": "stuck" if is_stuck else "ok"}, 503 if is_stuck else 200)

        @app.get("/ready")
        async def ready() -> JSONResponse:
            why = "starting" if self._thread is None else self._announcer.conflict
            return JSONResponse({"status": why or "ready"}, 503 if why else 200)

        @app.get("/metrics")
        async def metrics() -> Response:
            self._fill_metrics()
            return Response(self._metrics.render(), media_type=CONTENT_TYPE)

        return app

    async def serve(self) -> int:
        """Serve until a signal ends it; return the exit status."""
        config = self._config
        listener = bind_tcp(config.host, config.port)
        port = listener.getsockname()[1]
        http = f"http://{bracketed(config.reached_at)}:{port}"
        self._info = msgspec.structs.replace(self._info, http=http)
        async with served(self.app, listener, self._announcer, self._draining):
            await self._hold(asyncio.get_running_loop())
        return 0

    async def _hold(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have memory and disk, and serve with them until told to end."""
        config, size = self._config, self._size
        folder = StoreFolder(config.kv_store)
        with contextlib.closing(folder):
            arena = await asyncio.to_thread(Arena.make, folder.path, size.nbytes)
            disk = None
            if size.kv_store_dir is not None:
                disk = BlockFiles(size.kv_store_dir, size.disk_nbytes)
                await asyncio.to_thread(disk.scan)

            def tell(stored: list[bytes], evicted: list[bytes]) -> None:
                loop.call_soon_threadsafe(lambda: self._announcer.add(self._log.entry(stored, evicted)))

            thread = self._thread = StoreThread(
                folder,
                arena,
                disk,
                store_id=self._info.worker_id,
                incarnation=self._info.incarnation,
                cache_key=config.cache_key,
                tell=tell,
            ).start()
            num_on_disk = 0 if disk is None else len(disk)
            log.info("ready", folder=str(folder.path), gib=round(arena.nbytes / 2**30, 2), blocks_on_disk=num_on_disk)
            try:
                await self._draining.wait()
                await self._announcer.withdraw(self._info)
            finally:
                await asyncio.to_thread(thread.stop)
                arena.remove()

    def _serving(self) -> tuple[WorkerInfo, Load] | None:
        if self._thread is None:
            return None
        slots = self._thread.store.slots
        return self._info, Load(kv_free_blocks=slots.num_slots - slots.num_known, kv_total_blocks=slots.num_slots)

    def _fill_metrics(self) -> None:
        if self._thread is None:
            return
        store, metrics = self._thread.store, self._metrics
        slots, disk = store.slots, store.disk
        for state, count in (
            ("free", slots.num_free),
            ("writing", slots.num_writing),
            ("cached", slots.num_known),
            ("total", slots.num_slots),
        ):
            metrics.blocks.labels(state).set(count)
        metrics.used_bytes.labels("memory").set(slots.num_known * store.block_nbytes)
        metrics.used_bytes.labels("disk").set(0 if disk is None else disk.used_nbytes)
        metrics.clients.set(store.num_clients)
        metrics.loans.set(store.num_loans)
        now, before = store.counts, self._before
        self._before = now.copy()
        num_lent, num_read = now.num_lent - before.num_lent, now.num_read - before.num_read
        metrics.lookups.inc("memory", by=num_lent)
        metrics.lookups.inc("disk", by=num_read)
        metrics.lookups.inc("missing", by=max(now.num_wanted - before.num_wanted - num_lent - num_read, 0))
        metrics.stored.inc(now.num_stored - before.num_stored)
        metrics.bad.inc(now.num_bad - before.num_bad)
        metrics.damaged.value = 0 if disk is None else disk.num_damaged
        metrics.is_disk_full.set(disk is not None and disk.is_full)
