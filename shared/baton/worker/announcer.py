"""What a worker's face writes to Redis: its lease, and the block log of its engine."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable

from baton.logs import get_logger
from baton.messages import Blocks, Load, WorkerInfo
from baton.registry import RENEW_S, BlockLog, Registry, RegistryDown

SNAPSHOT_S = 30.0
MAX_LOGGED = 20_000

log = get_logger("face")


class Announcer:
    """Keeps in Redis what routers look for there. What Redis has lost is written again."""

    def __init__(
        self, registry: Registry | None, serving: Callable[[], tuple[WorkerInfo, Load] | None], draining: asyncio.Event
    ) -> None:
        """`serving` tells what to announce; None: the engine does not serve. After `draining` nothing is announced.

        Without a registry nothing is, ever.
        """
        self._registry = registry
        self._serving = serving
        self._draining = draining
        self.conflict = ""
        """Why it is not announced: another worker has its id."""
        self._incarnations: set[str] = set()  # of this worker, so far
        self._log = BlockLog("", "")  # of the engine process that lives
        self._queue: deque[Blocks] = deque()
        self._changed = asyncio.Event()
        self._needs_snapshot = False
        self._snapshot_at = 0.0
        self._snapshot_sequence = 0

    def add(self, entry: Blocks) -> None:
        """Have an entry of the block log written; the first of an incarnation begins anew."""
        if self._registry is None:
            return
        if entry.incarnation != self._log.incarnation:
            self._log = BlockLog(entry.worker_id, entry.incarnation)
            self._queue.clear()
            self._needs_snapshot = False
            self._snapshot_sequence = 0
        if entry.sequence != self._log.sequence + 1:
            self._needs_snapshot = True
        self._log.add(entry)
        self._queue.append(entry)
        if len(self._queue) > MAX_LOGGED:
            self._queue.popleft()
            self._needs_snapshot = True
        self._changed.set()

    async def run(self) -> None:
        """Keep the lease and the log until cancelled."""
        if self._registry is not None:
            await asyncio.gather(self._renew(self._registry), self._write_log(self._registry))

    async def withdraw(self, info: WorkerInfo) -> None:
        """Take back what was written of a worker."""
        if self._registry is not None and not self.conflict:
            with contextlib.suppress(RegistryDown):
                await self._registry.withdraw(info)

    async def close(self) -> None:
        """Close the connections."""
        if self._registry is not None:
            await self._registry.close()

    async def _renew(self, registry: Registry) -> None:
        """Renew the lease each second while the engine serves."""
        is_up = True
        while not self._draining.is_set():
            serving = self._serving()
            if serving is not None:
                try:
                    if await self._may_announce(registry, serving[0]):
                        await registry.announce(*serving)
                    if not is_up:
                        log.info("registry_back")
                        self._needs_snapshot = True
                        self._changed.set()
                    is_up = True
                except RegistryDown as error:
                    if is_up:
                        log.warning("registry_down", reason=str(error))
                    is_up = False
            # not `wait_for`: in Python 3.11 it forgets a cancellation that comes together with the event
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RENEW_S if serving is not None else 0.1):
                    await self._draining.wait()

    async def _may_announce(self, registry: Registry, info: WorkerInfo) -> bool:
        """Whether the id is ours: nobody else holds its lease."""
        self._incarnations.add(info.incarnation)
        holder = await registry.holder(info.worker_id)
        if holder is None or holder[0] in self._incarnations or holder[1] == info.control:
            if self.conflict:
                log.info("worker_id_free", worker_id=info.worker_id)
                self.conflict, self._needs_snapshot = "", True
                self._changed.set()
            return True
        conflict = (
            f"worker_id={info.worker_id!r} is that of the worker at {holder[1]}. Give each worker its own --worker-id."
        )
        if conflict != self.conflict:
            self.conflict = conflict
            log.error("worker_id_taken", reason=conflict)
        return False

    async def _write_log(self, registry: Registry) -> None:
        """Bring the block log to Redis, in order; after a loss, a snapshot first."""
        queue = self._queue
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SNAPSHOT_S):
                    await self._changed.wait()
            self._changed.clear()
            if self.conflict:  # the log there is another worker's
                queue.clear()
                continue
            try:
                while queue:
                    entry = queue[0]
                    await registry.append_blocks(entry)
                    if queue and queue[0] is entry:
                        queue.popleft()
                if self._wants_snapshot():
                    self._needs_snapshot = False
                    self._snapshot_at, self._snapshot_sequence = time.monotonic(), self._log.sequence
                    await registry.write_snapshot(self._log.snapshot())
            except RegistryDown:
                # What could not be appended is in the next snapshot.
                queue.clear()
                self._needs_snapshot = True

    def _wants_snapshot(self) -> bool:
        if self._draining.is_set() or not self._log.sequence:
            return False
        is_old = time.monotonic() - self._snapshot_at > SNAPSHOT_S and self._log.sequence > self._snapshot_sequence
        return is_old or self._needs_snapshot
