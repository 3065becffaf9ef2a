"""A TCP proxy that does to bytes what networks do: comes late, in crumbs, slowly, wrong, not at all, or breaks off."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from tests.processes import HANG_S

CHUNK_NBYTES = 65_536


@dataclass
class Toxics:
    """What is wrong now. May be changed from any thread; 0 is nothing."""

    late_s: float = 0.0
    """Each piece comes so much later."""
    slice_nbytes: int = 0
    """Pieces are so short."""
    bytes_per_s: float = 0.0
    corrupt_every: int = 0
    """One bit of so many bytes is wrong."""
    is_half_open: bool = False
    """Nothing goes through, and nobody is told."""
    is_one_way: bool = False
    """Then only what the one who connected says goes through."""


class Proxy:
    """Listens on a port of its own in front of another, in a thread of its own."""

    def __init__(self, port: int, toxics: Toxics | None = None) -> None:
        """`port` is of whom it stands in front of."""
        self.toxics = toxics or Toxics()
        self.num_bytes = 0
        self.num_corrupted = 0
        self.num_connections = 0
        self._target = port
        self._rng = random.Random(port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(HANG_S)

    def cut(self) -> None:
        """Break all connections; new ones are taken."""
        self._loop.call_soon_threadsafe(self._abort)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._abort)
        self._call(asyncio.sleep(0.01))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(HANG_S)
        self._loop.close()

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers |= {writer, far_writer}
            self.num_connections += 1  # those that `cut` breaks
            try:
                ways = (self._pump(reader, far_writer, True), self._pump(far_reader, writer, False))
                await asyncio.wait([asyncio.create_task(way) for way in ways], return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._writers -= {writer, far_writer}
                writer.transport.abort()
                far_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_forth: bool) -> None:
        toxics = self.toxics
        with contextlib.suppress(OSError):
            while data := await reader.read(toxics.slice_nbytes or CHUNK_NBYTES):
                if toxics.late_s:
                    await asyncio.sleep(toxics.late_s)
                if toxics.bytes_per_s:
                    await asyncio.sleep(len(data) / toxics.bytes_per_s)
                while toxics.is_half_open and not (toxics.is_one_way and is_forth):
                    await asyncio.sleep(0.01)
                writer.write(self._spoilt(data))
                self.num_bytes += len(data)
                await writer.drain()

    def _spoilt(self, data: bytes) -> bytes:
        every = self.toxics.corrupt_every
        if not every or self._rng.random() > len(data) / every:
            return data
        self.num_corrupted += 1
        spoilt = bytearray(data)
        spoilt[self._rng.randrange(len(spoilt))] ^= 1 << self._rng.randrange(8)
        return bytes(spoilt)


@contextlib.contextmanager
def proxied(port: int) -> Iterator[Proxy]:
    """Stand in front of a port."""
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
