"""A worker's connection to the store of its host: one thread, one socket, two queues. The engine's thread never waits for it."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from baton.kvtransfer.store.arena import endpoint
from baton.kvtransfer.store.messages import HELLO_S, VERSION, BadMessage, Hello, Seal, ToClient, ToStore, Welcome
from baton.logs import get_logger
from baton.wakeup import Wakeup

LOOK_S = 0.2
"""Between hellos to a store that does not answer."""
NOT_FOUND_S = 10.0
SILENT_S = 3.0
"""After so long without a word the store counts as gone."""
_QUEUE_LEN = 10_000
_MAX_NBYTES = 256 << 20
"""Of one message: the names of 10 TB of blocks."""
log = get_logger("kvstore")


class StoreLink:
    """Say hello each second, send what is put in, keep what comes."""

    def __init__(
        self, folder: str, layout: str, block_nbytes: int, cache_key: str, on_message: Callable[[], None]
    ) -> None:
        """`on_message` is called in the link's thread when something came."""
        self.folder = Path(folder)
        self._endpoint = endpoint(self.folder)
        self._layout, self._block_nbytes = layout, block_nbytes
        self._seal = Seal(cache_key)
        self._on_message = on_message
        self._incarnation = ""
        self._heard_at = -math.inf
        self._told = ""
        """The last refusal or fault that was told."""
        self._outbox: deque[ToStore] = deque()
        self._inbox: deque[ToClient] = deque()
        self._wakeup = Wakeup()
        self._is_closing = False
        self._watched: Callable[[], bool] = lambda: False
        self._thread = threading.Thread(target=self._run, name="baton-kvstore", daemon=True)
        self._thread.start()

    @property
    def is_up(self) -> bool:
        """Whether the store has answered lately."""
        return time.monotonic() - self._heard_at < SILENT_S

    def send(self, message: ToStore) -> None:
        """Have a message sent; it is lost if the store is gone."""
        self._outbox.append(message)
        self._wakeup.set()

    def watch(self, work: Callable[[], bool]) -> None:
        """Have the thread call this again and again while it says that something is open, and after each `wake`."""
        self._watched = work

    def wake(self) -> None:
        """Have the thread look at what it watches."""
        self._wakeup.set()

    def take(self) -> list[ToClient]:
        """Take what has come, in order."""
        taken: list[ToClient] = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self._inbox.popleft())
        return taken

    def close(self) -> None:
        """End the thread."""
        self._is_closing = True
        self._wakeup.set()
        self._thread.join()
        self._wakeup.close()

    def _run(self) -> None:
        context: zmq.Context[Any] = zmq.Context()
        socket = _connect(context, self._endpoint)
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._wakeup.fileno(), zmq.POLLIN)
        began_at, hello_at, was_up = time.monotonic(), 0.0, False
        while not self._is_closing:
            now = time.monotonic()
            if now >= hello_at:
                hello_at = now + (HELLO_S if self.is_up else LOOK_S)
                self._post(socket, Hello(VERSION, self._layout, self._block_nbytes, self._incarnation))
            if was_up and not self.is_up:
                log.warning("kvstore_gone", endpoint=self._endpoint, effect="blocks come from this worker alone")
            elif not self._incarnation and now > began_at + NOT_FOUND_S:
                self._tell("kvstore_not_found", "nobody answers there")
            was_up = self.is_up
            is_open = self._watched()
            poller.poll(1 if is_open else max(1, int(1000 * (hello_at - now))))
            self._wakeup.clear()
            while self._outbox:
                self._post(socket, self._outbox.popleft())
            self._read(socket)
        context.destroy(linger=0)

    def _post(self, socket: zmq.Socket[Any], message: ToStore) -> None:
        with contextlib.suppress(zmq.ZMQError):  # nobody is there, or it takes nothing
            socket.send(self._seal.write(message), zmq.NOBLOCK)

    def _read(self, socket: zmq.Socket[Any]) -> None:
        num_read = 0
        with contextlib.suppress(zmq.Again):
            while True:
                frame = socket.recv(zmq.NOBLOCK)
                try:
                    message = self._seal.to_client(frame)
                except BadMessage as error:
                    self._tell("kvstore_bad_message", str(error))
                    continue
                if isinstance(message, Welcome):
                    self._heard(message)
                num_read += 1
                self._inbox.append(message)
        if num_read:
            self._on_message()

    def _heard(self, welcome: Welcome) -> None:
        if welcome.refusal:
            self._tell("kvstore_refused", welcome.refusal)
            return
        if not self.is_up:
            log.info("kvstore_found", store_id=welcome.store_id, num_slots=welcome.num_slots)
        self._told = ""
        self._incarnation = welcome.incarnation
        self._heard_at = time.monotonic()

    def _tell(self, event: str, reason: str) -> None:
        if reason != self._told:
            self._told = reason
            log.warning(event, endpoint=self._endpoint, reason=reason, effect="blocks come from this worker alone")


def _connect(context: zmq.Context[Any], endpoint: str) -> zmq.Socket[Any]:
    socket: zmq.Socket[Any] = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.ROUTING_ID, b"\1" + os.urandom(15))
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, _QUEUE_LEN)
    socket.setsockopt(zmq.RCVHWM, _QUEUE_LEN)
    socket.setsockopt(zmq.MAXMSGSIZE, _MAX_NBYTES)
    socket.setsockopt(zmq.RECONNECT_IVL, 100)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    socket.connect(endpoint)
    return socket
