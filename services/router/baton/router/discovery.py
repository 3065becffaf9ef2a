"""Discovery: follows the registry, beside all requests: which endpoints to talk to, what workers have cached.

When Redis does not answer, what is known stays, and workers are asked to send their block logs by socket.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping, Sequence

from baton.errors import ConfigError
from baton.logs import get_logger
from baton.metrics import RouterMetrics
from baton.registry import Registry, RegistryDown, WorkerRecord
from baton.router.index import PrefixIndex
from baton.router.pool import WorkerPool

_POLL_S = 0.1
_WORKERS_EVERY_S = 0.5
_MAX_BACKOFF_S = 5.0
_log = get_logger("discovery")


class Discovery:
    """Reads the registry in a loop of its own."""

    def __init__(self, registry: Registry | None, pool: WorkerPool, index: PrefixIndex, metrics: RouterMetrics) -> None:
        self._registry = registry
        self._pool = pool
        self._index = index
        self._metrics = metrics
        self._task: asyncio.Task[None] | None = None
        self._named: set[str] = set()
        """Endpoints that the registry named."""
        self._refused: set[str] = set()
        self.stores: Mapping[str, WorkerRecord] = {}
        """Stores of hosts, by id."""
        self.is_cut_off = False
        """Whether the registry does not answer."""

    def start(self) -> None:
        """Begin to follow; without a registry, ask workers for their logs."""
        self._pool.wants_blocks = self._registry is None
        if self._registry is None:
            self._metrics.registry_up.set(math.nan)
        else:
            self._task = asyncio.get_running_loop().create_task(self._follow(self._registry))

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._registry is not None:
            await self._registry.close()

    async def _follow(self, registry: Registry) -> None:
        loop = asyncio.get_running_loop()
        failures, look_at = 0, 0.0
        while True:
            try:
                if loop.time() >= look_at:
                    await self._find_workers(registry)
                    look_at = loop.time() + _WORKERS_EVERY_S
                await self._read_logs(registry)
                if failures or not self._pool.wants_blocks:
                    self._set_up(True, failures)
                failures = 0
                await asyncio.sleep(_POLL_S)
            except RegistryDown as error:
                failures += 1
                self._set_up(False, failures, str(error))
                backoff = min(_POLL_S * 2**failures, _MAX_BACKOFF_S)
                await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
            except Exception:  # a mistake of ours here must not end discovery
                _log.exception("discovery_failed")
                await asyncio.sleep(1.0)

    def _set_up(self, is_up: bool, failures: int, reason: str = "") -> None:
        self._metrics.registry_up.set(is_up)
        self._pool.wants_blocks = self.is_cut_off = not is_up
        if is_up and failures:
            _log.info("registry_back")
        elif not is_up and failures == 1:
            _log.warning("registry_down", reason=reason, effect="serving goes on with the workers that are known")

    async def _find_workers(self, registry: Registry) -> None:
        records = await registry.workers()
        self._follow_stores([record for record in records if "store" in record.info.legs])
        named = {record.info.control for record in records if "store" not in record.info.legs}
        for endpoint in named - self._refused:
            try:
                self._pool.connect(endpoint)
            except ConfigError as error:  # one bad record must not hide the others
                self._refused.add(endpoint)
                _log.error("endpoint_refused", endpoint=endpoint, reason=str(error))
        self._refused &= named
        for endpoint in self._named - named:
            self._pool.disconnect(endpoint)
        # an endpoint stays named while somebody lives there: a wiped registry takes no worker away
        self._named = named | (self._named & set(self._pool.endpoints()))

    def _follow_stores(self, stores: Sequence[WorkerRecord]) -> None:
        """Know the blocks of stores that live; nobody talks to them."""
        named = {store.info.worker_id: store for store in stores}
        for gone in self.stores.keys() - named:
            self._index.forget(gone)
        for store_id, store in named.items():
            known = self.stores.get(store_id)
            if known is None or known.info.incarnation != store.info.incarnation:
                self._index.expect(store_id, store.info.incarnation)
        self.stores = named

    async def _read_logs(self, registry: Registry) -> None:
        for worker_id in list(self._index.wants_snapshot):
            snapshot = await registry.read_snapshot(worker_id)
            self._index.wants_snapshot.discard(worker_id)
            if snapshot is not None:
                self._index.apply(snapshot)
        for entry in await registry.read_blocks(self._index.positions()):
            self._index.apply(entry)
