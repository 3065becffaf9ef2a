"""One thread that drives the exporter and the importer of a worker."""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Container
from typing import Any

import zmq

from baton.kvtransfer.exchange import Exchange
from baton.kvtransfer.transports.transport import Socket

log = logging.getLogger("baton.kvtransfer")
BACK_OFF_S = 0.05
"""After a step that failed, so that one which fails again and again does not fill the log."""
POLLED_S = 0.001
"""What the sockets can be waited for; anything shorter is slept, and they are looked at afterwards."""
_PR_SET_TIMERSLACK = 29
_TIMER_SLACK_NS = 1000


class TransferThread:
    """Drive exchanges in a thread of their own until stopped, then close them."""

    def __init__(self, *exchanges: Exchange[Any]) -> None:
        self._exchanges = exchanges
        self._stopping = False
        self._poller = zmq.Poller()
        self._polled: list[Socket] | None = None
        self._thread = threading.Thread(target=self._run, name="baton-kv", daemon=True)

    def start(self) -> TransferThread:
        """Begin."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End what is open, close the exchanges, and wait for the thread."""
        self._stopping = True
        for exchange in self._exchanges:
            exchange.wakeup.set()
        self._thread.join()

    def _run(self) -> None:
        _sleep_precisely()
        stirred: Container[Socket | int] = ()
        while not self._stopping:
            try:
                stirred = self._wait(min(exchange.service(stirred) for exchange in self._exchanges))
            except Exception:  # the edge of the loop: one message or command is lost, the worker lives
                log.exception("a step of the KV transfer failed")
                time.sleep(BACK_OFF_S)
        for exchange in self._exchanges:
            exchange.close()

    def _wait(self, seconds: float) -> Container[Socket | int]:
        """Wait until something stirs, at most so long; return what did."""
        sockets = [socket for exchange in self._exchanges for socket in exchange.sockets()]
        if sockets != self._polled:
            self._polled, self._poller = sockets, zmq.Poller()
            for stirring in (*(exchange.wakeup.fileno() for exchange in self._exchanges), *sockets):
                self._poller.register(stirring, zmq.POLLIN)
        if 0 < seconds < POLLED_S:  # of a device's copies; a poll of 0.1 ms would be one of 1 ms, or a spin
            time.sleep(seconds)
            seconds = 0
        return dict(self._poller.poll(int(min(seconds, 1.0) * 1000)))


def _sleep_precisely() -> None:
    """Have the kernel end this thread's sleeps within a microsecond; it adds 50 otherwise, to share its wake-ups."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_TIMERSLACK, _TIMER_SLACK_NS, 0, 0, 0)
