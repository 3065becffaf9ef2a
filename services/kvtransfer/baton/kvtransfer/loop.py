"""One thread that drives the exporter and the importer of a worker."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Container, Sequence
from typing import Protocol

import zmq

from baton.kvtransfer.transports.transport import Socket
from baton.wakeup import Wakeup

log = logging.getLogger("baton.kvtransfer")
BACK_OFF_S = 0.05
"""After a step that failed, so that one which fails again and again does not fill the log."""


class Part(Protocol):
    """Something to drive: it does what can be done now, never waits, and says when to come back."""

    @property
    def wakeup(self) -> Wakeup: ...

    def sockets(self) -> Sequence[Socket]:
        """Sockets whose messages concern it."""

    def service(self, stirred: Container[Socket | int]) -> float:
        """Do all that can be done now; return the seconds until there may be more, if no socket stirs before.

        `stirred` has the sockets that may be read, and the wake-up's descriptor if it was set: asking the others
        costs as much as a small message.
        """

    def close(self) -> None:
        """Release everything."""


class TransferThread:
    """Drive parts in a thread of their own until stopped, then close them."""

    def __init__(self, *parts: Part) -> None:
        self._parts = parts
        self._stopping = False
        self._poller = zmq.Poller()
        self._polled: list[Socket] | None = None
        self._thread = threading.Thread(target=self._run, name="baton-kv", daemon=True)

    def start(self) -> TransferThread:
        """Begin."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End what is open, close the parts, and wait for the thread."""
        self._stopping = True
        for part in self._parts:
            part.wakeup.set()
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
        """Wait until something stirs, at most so long; return what did."""
        sockets = [socket for part in self._parts for socket in part.sockets()]
        if sockets != self._polled:
            self._polled, self._poller = sockets, zmq.Poller()
            for stirring in (*(part.wakeup.fileno() for part in self._parts), *sockets):
                self._poller.register(stirring, zmq.POLLIN)
        # Rounded up: a wait of 0.4 ms must not become a spin.
        return dict(self._poller.poll(int(min(seconds, 1.0) * 1000) + (seconds > 0)))
