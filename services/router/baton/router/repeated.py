"""Repeated: a call that is made again and again, beside all requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Repeated:
    """Makes a call every so many seconds, from `start` to `close`."""

    def __init__(self, every_s: float, call: Callable[[], None]) -> None:
        self._every_s = every_s
        self._call = call
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; the first call comes after the first interval."""
        self._task = asyncio.get_running_loop().create_task(self._repeat())

    async def close(self) -> None:
        """Make no more calls."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            self._call()
