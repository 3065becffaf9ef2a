"""What a worker's face writes to Redis: its lease, and the block log of its engine."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable

from baton.logs import get_logger
from baton.messages import Blocks, Load, WorkerInfo
from baton.registry import RENEW_S, Registry, RegistryDown

SNAPSHOT_S = 30.0
MAX_LOGGED = 20_000

log = get_logger("face")


class BlockLogCopy:
    """An engine's block log as it stands, so that a wiped Redis can be told the whole."""

    def __init__(self) -> None:
        self._hashes: set[bytes] = set()
        self._last: Blocks | None = None
        self._snapshot_at = 0.0
        self._snapshot_sequence = 0
        self.queue: deque[Blocks] = deque()
        """Entries to be written."""
        self.needs_snapshot = False

    def add(self, entry: Blocks) -> None:
        """Take in an entry; the first of an incarnation begins anew."""
        if self._last is None or entry.incarnation != self._last.incarnation:
            self._hashes.clear()
            self.queue.clear()
            self.needs_snapshot = False
            self._snapshot_sequence = 0
        elif entry.sequence != self._last.sequence + 1:
            self.needs_snapshot = True
        self._hashes.difference_update(entry.evicted)
        self._hashes.update(entry.stored)
        self._last = entry
        self.queue.append(entry)
        if len(self.queue) > MAX_LOGGED:
            self.queue.popleft()
            self.needs_snapshot = True

    def take_snapshot(self) -> Blocks | None:
        """Make a snapshot if it is time for one; None: not yet."""
        last, now = self._last, time.monotonic()
        if last is None:
            return None
        is_due = now - self._snapshot_at > SNAPSHOT_S and last.sequence > self._snapshot_sequence
        if not is_due and not self.needs_snapshot:
            return None
        self.needs_snapshot = False
        self._snapshot_at, self._snapshot_sequence = now, last.sequence
        return Blocks(last.worker_id, last.incarnation, last.sequence, list(self._hashes), [], True)


class Announcer:
    """Keeps in Redis what routers look for there. What Redis has lost is written again."""

    def __init__(
        self, registry: Registry, serving: Callable[[], tuple[WorkerInfo, Load] | None], draining: asyncio.Event
    ) -> None:
        """`serving` tells what to announce; None: the engine does not serve. After `draining` nothing is announced."""
        self._registry = registry
        self._serving = serving
        self._copy = BlockLogCopy()
        self._changed = asyncio.Event()
        self._draining = draining

    def add(self, entry: Blocks) -> None:
        """Have an entry of the block log written."""
        self._copy.add(entry)
        self._changed.set()

    async def run(self) -> None:
        """Keep the lease and the log until cancelled."""
        await asyncio.gather(self._renew(), self._write_log())

    async def withdraw(self, info: WorkerInfo) -> None:
        """Take back what was written of a worker."""
        with contextlib.suppress(RegistryDown):
            await self._registry.withdraw(info)

    async def close(self) -> None:
        """Close the connections."""
        await self._registry.close()

    async def _renew(self) -> None:
        """Renew the lease each second while the engine serves."""
        is_up = True
        while not self._draining.is_set():
            serving = self._serving()
            if serving is not None:
                try:
                    await self._registry.announce(*serving)
                    if not is_up:
                        log.info("registry_back")
                        self._copy.needs_snapshot = True
                        self._changed.set()
                    is_up = True
                except RegistryDown as error:
                    if is_up:
                        log.warning("registry_down", reason=str(error))
                    is_up = False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._draining.wait(), RENEW_S if serving is not None else 0.1)

    async def _write_log(self) -> None:
        """Bring the block log to Redis, in order; after a loss, a snapshot first."""
        queue = self._copy.queue
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), SNAPSHOT_S)
            self._changed.clear()
            try:
                while queue:
                    entry = queue[0]
                    await self._registry.append_blocks(entry)
                    if queue and queue[0] is entry:
                        queue.popleft()
                snapshot = None if self._draining.is_set() else self._copy.take_snapshot()
                if snapshot is not None:
                    await self._registry.write_snapshot(snapshot)
            except RegistryDown:
                # What could not be appended is in the next snapshot.
                queue.clear()
                self._copy.needs_snapshot = True
