"""One thread that drives the exporter and the importer of a worker, and how other threads wake it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Container, Sequence
from typing import Protocol

import zmq

from baton.kvtransfer.transports.transport import Socket

log = logging.getLogger("baton.kvtransfer")
BACK_OFF_S = 0.05
"""After a step that failed, so that one which fails again and again does not fill the log."""


class Doorbell:
    """Wake a thread that polls, from any other thread."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # Between a look at the descriptor and a write to it, its number could become another file's.
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """Give what to poll; readable after `ring`."""
        return self._fd

    def ring(self) -> None:
        """Wake the thread, now or at its next poll; nothing happens once closed."""
        with self._lock:
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)

    def hush(self) -> None:
        """Take note of all rings until now."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def close(self) -> None:
        """Give the descriptor back."""
        with self._lock:
            fd, self._fd = self._fd, -1
            os.close(fd)


class Part(Protocol):
    """Something to drive: it does what can be done now, never waits, and says when to come back."""

    @property
    def doorbell(self) -> Doorbell: ...

    def sockets(self) -> Sequence[Socket]:
        """Give the sockets whose messages concern it."""

    def service(self, stirred: Container[Socket | int]) -> float:
        """Do all that can be done now; give the seconds until there may be more, if no socket stirs before.

        `stirred` has the sockets that may be read, and the doorbell's descriptor if it was rung: asking the others
        costs as much as a small message.
        """

    def close(self) -> None:
        """Give everything back."""


class TransferThread:
    """Drive parts in a thread of their own until stopped, then close them."""

    def __init__(self, *parts: Part) -> None:
        self._parts = parts
        self._stopping = False
        self._poller = zmq.Poller()
        self._polled: list[Socket] | None = None
        self._thread = threading.Thread(target=self._run, name="baton-kv", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether transfers are served."""
        return self._thread.is_alive()

    def start(self) -> TransferThread:
        """Begin."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End what is open, close the parts, and wait for the thread."""
        self._stopping = True
        for part in self._parts:
            part.doorbell.ring()
        self._thread.join()

    def _run(self) -> None:
        stirred: Container[Socket | int] = ()
        while not self._stopping:
            try:
                stirred = self._wait(min(part.service(stirred) for part in self._parts))
            except Exception:  # the edge of the loop: one message or command is lost, the worker lives
                log.exception("a step of the KV transfer failed")
                time.sleep(BACK_OFF_S)
        for part in self._parts:
            part.close()

    def _wait(self, seconds: float) -> Container[Socket | int]:
        """Wait until something stirs, at most so long, and give what did."""
        sockets = [socket for part in self._parts for socket in part.sockets()]
        if sockets != self._polled:
            self._polled, self._poller = sockets, zmq.Poller()
            for stirring in (*(part.doorbell.fileno() for part in self._parts), *sockets):
                self._poller.register(stirring, zmq.POLLIN)
        # Rounded up: a wait of 0.4 ms must not become a spin.
        return dict(self._poller.poll(int(min(seconds, 1.0) * 1000) + (seconds > 0)))
