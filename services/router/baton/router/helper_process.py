"""HelperProcess: a process beside the router that does what would hold the event loop, and may be ended while it does."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import msgspec

_START_S = 10.0
_KEEP = 0.9
"""Weight of the past in the mean time of an answer."""


class HelperTooSlow(Exception):
    """It did not answer in time, and was ended."""


class HelperDied(Exception):
    """It ended by itself: it got no more memory."""


class HelperProcess:
    """One process of a module that answers frames (`baton.router.frames`); started when needed, ended when it hangs."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._process: asyncio.subprocess.Process | None = None

    @property
    def is_running(self) -> bool:
        """Whether it needs no start."""
        return self._process is not None and self._process.returncode is None

    async def ready(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", self._module),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the router, which ends it in order
            )
            # its first answer tells that Python and all that it imports are loaded: that time is not the request's
            async with asyncio.timeout(_START_S):
                await self._exchange(self._process, msgspec.msgpack.encode(None))
        return self._process

    async def ask(self, frame: bytes, timeout_s: float) -> Any:
        """Send a frame; return its answer.

        Raises:
            HelperTooSlow, HelperDied: there is none; the next request gets a new process.
        """
        try:
            process = await self.ready()
            async with asyncio.timeout(timeout_s):
                return await self._exchange(process, frame)
        except TimeoutError:
            await self.stop()
            raise HelperTooSlow(f"it took longer than {timeout_s:g} s") from None
        except (OSError, EOFError, asyncio.IncompleteReadError):
            await self.stop()
            raise HelperDied("it needs too much memory") from None
        except asyncio.CancelledError:
            await self.stop()  # its answer would be taken for the next one's
            raise

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()

    async def _exchange(self, process: asyncio.subprocess.Process, frame: bytes) -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.writelines((len(frame).to_bytes(4, "little"), frame))
        await process.stdin.drain()
        nbytes = int.from_bytes(await process.stdout.readexactly(4), "little")
        return msgspec.msgpack.decode(await process.stdout.readexactly(nbytes))


class HelperPool:
    """A few processes of one module; who finds all of them busy waits."""

    def __init__(self, module: str, size: int) -> None:
        self._all = [HelperProcess(module) for _ in range(size)]
        self._idle: asyncio.Queue[HelperProcess] = asyncio.Queue()
        for helper in self._all:
            self._idle.put_nowait(helper)
        self._num_waiting = 0
        self._mean_s = 0.0

    @property
    def wait_s(self) -> float:
        """Predict how long one that comes now waits until a helper is free for it."""
        return self._num_waiting * self._mean_s / len(self._all)

    async def start(self) -> None:
        """Start the first one, so that the first request does not wait for it."""
        await self._all[0].ready()

    async def ask(self, frame: bytes, timeout_s: float) -> Any:
        """Let one answer; raises as `HelperProcess.ask`."""
        self._num_waiting += 1
        try:
            helper = await self._idle.get()
        finally:
            self._num_waiting -= 1
        began, is_warm = time.monotonic(), helper.is_running
        try:
            return await helper.ask(frame, timeout_s)
        finally:
            if is_warm:
                took_s = time.monotonic() - began
                self._mean_s = _KEEP * self._mean_s + (1 - _KEEP) * took_s
            self._idle.put_nowait(helper)

    async def close(self) -> None:
        for helper in self._all:
            await helper.stop()
