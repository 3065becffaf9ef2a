"""Batches: finds those that wait, runs them, and lets their lines go only where nobody else waits.

A line has the lowest priority that there is: workers serve everything else first. And no line begins while requests wait
for their first token, so that none lies before a request that comes a moment later.
"""

from __future__ import annotations

import asyncio

import msgspec
from starlette.types import ASGIApp

from baton.errors import InvalidRequest
from baton.logs import get_logger
from baton.requests.fields import INT31
from baton.router.batches.batch import BatchFolder, OwnersBatches
from baton.router.batches.data_dir import DataDir
from baton.router.batches.files import Files
from baton.router.batches.run import BatchRun
from baton.router.inside import InnerAnswer, ask
from baton.router.router_state import RouterState

LOWEST = INT31
"""Of priorities, the one that is served last."""
_SCAN_S = 5.0
_MAX_RUNS = 8
"""Batches that one router runs side by side; others wait for their turn."""
_WAIT_S, _NEXT_S = 0.02, 0.005
"""Between looks whether a line may begin; before it does, so that the one before is seen to wait."""
_log = get_logger("batches")


class NoDataDir(InvalidRequest):
    """Nothing is kept here."""

    def __init__(self) -> None:
        super().__init__(
            "Files and batches are kept on the router's disk, and it has been given no place for them. "
            "Start it with --data-dir FOLDER.",
            code="no_data_dir",
        )


class Batches:
    """What a router keeps, and the batches that it runs."""

    def __init__(self, router: RouterState) -> None:
        """Make the folder.

        Raises:
            ConfigError: it cannot be made.
        """
        config = router.config
        self._router = router
        self._api: ASGIApp
        self._data = DataDir(config.data_dir, config.api_key, config.cache_key) if config.data_dir else None
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._ended: set[str] = set()
        """Batches that need no look any more."""
        self._look = asyncio.Event()
        self._num_lines: dict[bytes, int] = {}
        """Lines that are being answered, by tenant."""
        self._scan: asyncio.Task[None] | None = None
        self._turns: dict[bytes, asyncio.Lock] = {}
        """Held by the line of a tenant that begins next."""

    # -- life ---------------------------------------------------------------------------------------------

    def start(self, api: ASGIApp) -> None:
        """Take up what is left, and what comes."""
        self._api = api
        if self._data is not None:
            self._scan = asyncio.get_running_loop().create_task(self._scan_again())

    async def stop(self) -> None:
        """Leave every batch where it is."""
        tasks = [*self._runs.values(), *([self._scan] if self._scan else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- what is kept -------------------------------------------------------------------------------------

    def files(self, tenant: bytes) -> Files:
        """Return a tenant's files.

        Raises:
            NoDataDir: nothing is kept.
        """
        return Files(self._kept.of(tenant))

    def of(self, tenant: bytes) -> OwnersBatches:
        """Return a tenant's batches.

        Raises:
            NoDataDir: nothing is kept.
        """
        return OwnersBatches(self._kept.of(tenant))

    def look(self) -> None:
        """Look for new batches now."""
        self._look.set()

    @property
    def _kept(self) -> DataDir:
        if self._data is None:
            raise NoDataDir
        return self._data

    # -- running ------------------------------------------------------------------------------------------

    async def _scan_again(self) -> None:
        while True:
            self._look.clear()
            for tenant, folder in await asyncio.to_thread(self._find):
                self._start(tenant, folder)
            try:
                async with asyncio.timeout(_SCAN_S):
                    await self._look.wait()
            except TimeoutError:
                pass

    def _find(self) -> list[tuple[bytes, BatchFolder]]:
        """Lock batches that nobody runs, the oldest first, as many as there is room for."""
        found: list[tuple[bytes, BatchFolder]] = []
        for owner, tenant in self._kept.tenants.items():
            batches = OwnersBatches(self._kept.path / owner)
            for batch_id in reversed(batches.newest_first()):
                if batch_id in self._runs or batch_id in self._ended:
                    continue
                folder = batches.get(batch_id)
                try:
                    is_open = folder.load().is_open
                except (OSError, msgspec.MsgspecError) as error:  # one that cannot be read is not the others' loss
                    _log.error("batch_unreadable", batch=batch_id, reason=str(error))
                    is_open = False
                if not is_open:
                    self._ended.add(batch_id)
                elif len(self._runs) + len(found) < _MAX_RUNS and folder.try_lock():
                    found.append((tenant, folder))
        return found

    def _start(self, tenant: bytes, folder: BatchFolder) -> None:
        config = self._router.config

        async def ask_in_turn(path: str, body: bytes, request_id: str) -> InnerAnswer:
            return await self._ask(tenant, path, body, request_id)

        run = BatchRun(
            folder,
            ask_in_turn,
            max_lines=config.max_batch_lines,
            max_line_nbytes=config.max_body_nbytes,
            at_once=max(config.batch_concurrency, 1),
        )
        batch_id = folder.path.name
        task = self._runs[batch_id] = asyncio.get_running_loop().create_task(run.run())

        def ended(_: object) -> None:
            del self._runs[batch_id]
            self._look.set()

        task.add_done_callback(ended)

    async def _ask(self, tenant: bytes, path: str, body: bytes, request_id: str) -> InnerAnswer:
        async with self._turns.setdefault(tenant, asyncio.Lock()):
            while not self._may_begin(tenant):
                await asyncio.sleep(_WAIT_S)
            self._num_lines[tenant] = self._num_lines.get(tenant, 0) + 1
            try:
                await asyncio.sleep(_NEXT_S)
            except BaseException:
                self._num_lines[tenant] -= 1
                raise
        try:
            return await ask(self._api, path, body, tenant=tenant, request_id=request_id, priority=LOWEST)
        finally:
            self._num_lines[tenant] -= 1

    def _may_begin(self, tenant: bytes) -> bool:
        """Whether one more line delays nobody: few requests wait, and its key has streams to spare."""
        router, dispatcher = self._router, self._router.dispatcher
        num_decode = sum(worker.can_decode for worker in router.pool.workers.values())
        num_waiting = len(dispatcher.flows) - dispatcher.num_running
        most = router.tenants.of(tenant).limits.max_streams
        return (
            num_waiting < 2 * num_decode
            and sum(self._num_lines.values()) < self._router.config.batch_concurrency
            and (not most or self._num_lines.get(tenant, 0) < max(most // 2, 1))
        )
