"""The pipe between a worker's face and its engine process: framed msgpack over a socket pair, one thread here.

The loop only leaves messages; reports replace one another, so a face that stands still costs nothing. When the face is
gone, so is the reason to run: its end of the pipe closes, and the process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable

import msgspec

from baton.wakeup import Wakeup
from baton.worker.stats import Assignment, Drain, Logged, Pulse, Stats, ToFace

_LENGTH = struct.Struct("<I")
MAX_NBYTES = 64 * 2**20
MAX_LOGGED = 10_000
"""Entries of the block log that wait; what is lost beyond shows as a gap, which a snapshot heals."""

to_face: msgspec.msgpack.Decoder[ToFace] = msgspec.msgpack.Decoder(ToFace)


def frame(message: ToFace | Assignment | Drain) -> bytes:
    """Encode a message, with its length before it."""
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """Read a message's bytes.

    Raises:
        IncompleteReadError, ConnectionError: the other end is gone.
    """
    (nbytes,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return await reader.readexactly(nbytes)


def receive_frame(link: socket.socket) -> bytes | None:
    """Wait for a message's bytes; None: the other end is gone."""
    length = _receive_exactly(link, _LENGTH.size)
    return None if length is None else _receive_exactly(link, *_LENGTH.unpack(length))


def _receive_exactly(link: socket.socket, nbytes: int) -> bytes | None:
    received = bytearray()
    while len(received) < nbytes:
        piece = link.recv(nbytes - len(received))
        if not piece:
            return None
        received += piece
    return bytes(received)


class FaceLink:
    """The engine process's end."""

    def __init__(self, fd: int, *, on_drain: Callable[[], None]) -> None:
        self._socket = socket.socket(fileno=fd)
        self._wakeup = Wakeup()
        self._queue: deque[ToFace] = deque()
        self._stats: Stats | None = None
        self._pulse: Pulse | None = None
        self._on_drain = on_drain
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="face", daemon=True)
        self._thread.start()

    def post(self, message: ToFace) -> None:
        """Leave a message for the face; of reports only the newest is kept."""
        if isinstance(message, Stats):
            if self._stats is not None:  # what it tells once must not be lost with it
                message.transfers = (self._stats.transfers + message.transfers)[-1000:]
                message.phases = (self._stats.phases + message.phases)[-1000:]
            self._stats = message
        elif isinstance(message, Pulse):
            self._pulse = message
        elif not isinstance(message, Logged) or len(self._queue) < MAX_LOGGED:
            self._queue.append(message)
        self._wakeup.set()

    def close(self) -> None:
        """Send what is left, and close."""
        self._is_closing = True
        self._wakeup.set()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wakeup.fileno(), select.POLLIN)
        poll.register(self._socket, select.POLLIN)
        with contextlib.suppress(OSError):  # the other end is gone
            while True:
                is_closing = self._is_closing
                self._send()
                if is_closing:
                    return
                ready = {fd for fd, _ in poll.poll(1_000)}
                self._wakeup.clear()
                if self._socket.fileno() in ready:
                    if receive_frame(self._socket) is None:
                        break
                    self._on_drain()  # after the assignment the face says nothing else
        if not self._is_closing:
            os._exit(3)  # who asked for this process's work is gone

    def _send(self) -> None:
        while self._queue:
            self._socket.sendall(frame(self._queue.popleft()))
        stats, self._stats = self._stats, None
        pulse, self._pulse = self._pulse, None
        for message in (stats, pulse):
            if message is not None:
                self._socket.sendall(frame(message))
