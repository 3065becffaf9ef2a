"""The thread in which a store serves: one socket, a few threads beside it for the disk."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import zmq

from baton.errors import ConfigError
from baton.kvtransfer.store.arena import Arena, StoreFolder
from baton.kvtransfer.store.disk import BlockFiles
from baton.kvtransfer.store.messages import BadMessage, Seal, ToClient
from baton.kvtransfer.store.store import NUM_READERS, Store
from baton.logs import get_logger
from baton.wakeup import Wakeup

DISK_THREADS = NUM_READERS + 1
"""One writes."""
MAX_NBYTES = 1 << 20
"""Of a message from a worker: 4096 names, their checksums and slots."""
_TURN = 100
"""Messages that are read before what has changed is told."""
_TICK_S = 0.5
log = get_logger("kvstore")


class StoreThread:
    """Drives a `Store` until stopped."""

    def __init__(
        self,
        folder: StoreFolder,
        arena: Arena,
        disk: BlockFiles | None,
        *,
        store_id: str,
        incarnation: str,
        cache_key: str,
        tell: Callable[[list[bytes], list[bytes]], None],
    ) -> None:
        """`tell` hears the names that came and went, in this thread.

        Raises:
            ConfigError: the folder's name is too long for a socket.
        """
        self._seal = Seal(cache_key)
        self._told: set[str] = set()
        self._wakeup = Wakeup()
        self._ended: deque[Callable[[], None]] = deque()
        """What is to be done in the thread with what the disk gave."""
        self._disk_threads = ThreadPoolExecutor(DISK_THREADS, "baton-disk")
        self.store = Store(store_id, incarnation, arena, disk, send=self._send, do=self._do, tell=tell)
        if disk is not None:
            disk.on_change = lambda key: self._later(lambda: self.store.note_changed((key,)))
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = _bind(self._context, folder)
        self.beat_at = time.monotonic()
        """When the thread last came round."""
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="baton-store", daemon=True)

    def start(self) -> StoreThread:
        """Begin."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End, once the disk has what it is given now."""
        self._is_stopping = True
        self._wakeup.set()
        self._thread.join()
        self._disk_threads.shutdown(cancel_futures=True)
        self._context.destroy(linger=0)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wakeup.fileno(), zmq.POLLIN)
        while not self._is_stopping:
            try:
                poller.poll(int(1000 * _TICK_S))
                self._turn()
            except Exception:  # the edge: one message is lost, the store lives
                log.exception("store_turn_failed")

    def _turn(self) -> None:
        now = self.beat_at = time.monotonic()
        self._wakeup.clear()
        self.store.expire(now)
        while self._ended:
            self._ended.popleft()()
        with contextlib.suppress(zmq.Again):
            for _ in range(_TURN):
                self._take(self._socket.recv_multipart(zmq.NOBLOCK), now)
        self.store.flush()

    def _take(self, frames: Sequence[bytes], now: float) -> None:
        if len(frames) != 2:
            self.store.counts.num_dropped += 1
            return
        client_id, frame = frames
        try:
            message = self._seal.to_store(frame)
        except BadMessage as error:
            self.store.counts.num_dropped += 1
            if str(error) not in self._told and len(self._told) < 100:
                self._told.add(str(error))
                log.warning("bad_message", reason=str(error))
            return
        self.store.take(client_id, message, now)

    def _send(self, client_id: bytes, message: ToClient) -> bool:
        try:
            self._socket.send_multipart([client_id, self._seal.write(message)], zmq.NOBLOCK)
        except zmq.ZMQError:  # it is gone, or does not read
            return False
        return True

    def _do(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Have the disk do something; then take it up here."""

        def run() -> None:
            result = None
            try:
                result = work()
            except Exception:
                log.exception("disk_failed")
            self._later(lambda: then(result))

        self._disk_threads.submit(run)

    def _later(self, act: Callable[[], None]) -> None:
        self._ended.append(act)
        self._wakeup.set()


def _bind(context: zmq.Context[Any], folder: StoreFolder) -> zmq.Socket[Any]:
    socket: zmq.Socket[Any] = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 10_000)
    socket.setsockopt(zmq.RCVHWM, 10_000)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_NBYTES)
    try:
        socket.bind(folder.endpoint)
    except zmq.ZMQError as error:
        raise ConfigError(f"kv_store={str(folder.path)!r} is not valid: {error}. Name another folder.") from None
    return socket
