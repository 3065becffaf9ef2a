"""WorkerClient: the messages that a worker answers, typed, over one ZeroMQ socket.

The socket is read by the event loop itself, without a task or a future a message: one call takes a whole step's tokens.
Sending never waits: a worker that does not take messages is a worker that is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import cast

import zmq

from baton.errors import ConfigError
from baton.logs import get_logger
from baton.messages import (
    MAX_MESSAGE_NBYTES,
    WORKER_SILENCE_S,
    BadMessage,
    Hello,
    ToRouter,
    ToWorker,
    decode_to_router,
    encode,
)
from baton.router.config import RouterConfig
from baton.router.host_name import HostName

_QUEUE_LEN = 10_000
_TURN_S = 0.005
"""For how long messages are taken before the loop may do something else."""
_log = get_logger("workers")


class WorkerGone(Exception):
    """The worker does not take messages now."""


class Connections:
    """All of a router's sockets to workers."""

    def __init__(self, config: RouterConfig) -> None:
        self._config = config
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 4096)

    def open(
        self,
        endpoint: str,
        on_message: Callable[[WorkerClient, ToRouter], None],
        on_bad_message: Callable[[WorkerClient, str], None],
    ) -> WorkerClient:
        """Connect to whoever lives at an endpoint.

        Raises:
            ConfigError: it is no endpoint.
        """
        return WorkerClient(self._context, endpoint, self._config, on_message, on_bad_message)

    def close(self) -> None:
        """Let go of what is left."""
        self._context.destroy(linger=0)


class WorkerClient:
    """The connection to one control endpoint, whoever lives there."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        config: RouterConfig,
        on_message: Callable[[WorkerClient, ToRouter], None],
        on_bad_message: Callable[[WorkerClient, str], None],
    ) -> None:
        """`on_bad_message` hears why a frame is no message."""
        self.endpoint = endpoint
        self.last_heard = 0.0
        """By the loop's clock; 0: never."""
        self.refusal = ""
        """Why who lives there is sent no requests, if so; it hears of it with each hello."""
        self._context = context
        self._config = config
        self._on_message = on_message
        self._on_bad_message = on_bad_message
        self._loop = asyncio.get_running_loop()
        self._socket: zmq.Socket[bytes] | None = None
        self._is_reading = False
        self._name = HostName.of(endpoint, self._on_new_address)
        self._looks_again: asyncio.TimerHandle | None = None
        self.reopen()

    def reopen(self) -> None:
        """Connect anew, and drop what the old connection had queued: it was meant for one who is gone."""
        self.close()
        if self._name is None:
            self._connect(self.endpoint)
            return
        if self._name.endpoint:
            self._connect(self._name.endpoint)
        self._name.look_up()
        self._looks_again = self._loop.call_later(WORKER_SILENCE_S, self._look_again, self._name)

    def _on_new_address(self) -> None:
        if self._looks_again is not None:  # else we have left meanwhile
            self.reopen()

    def _look_again(self, name: HostName) -> None:
        """Ask where the name leads while nobody answers there."""
        if self._loop.time() - self.last_heard > WORKER_SILENCE_S:
            name.look_up(after=name.endpoint)
        self._looks_again = self._loop.call_later(WORKER_SILENCE_S, self._look_again, name)

    def _connect(self, endpoint: str) -> None:
        socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        try:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.IPV6, "[" in endpoint)
            socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing queues for a worker that is not there
            socket.setsockopt(zmq.SNDHWM, _QUEUE_LEN)
            socket.setsockopt(zmq.RCVHWM, _QUEUE_LEN)
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_NBYTES)
            socket.setsockopt(zmq.RECONNECT_IVL, 100)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
            if self._config.curve_server_key is not None and not self.endpoint.startswith("ipc:"):
                assert self._config.curve_public_key is not None
                assert self._config.curve_secret_key is not None
                socket.curve_serverkey = self._config.curve_server_key.encode()
                socket.curve_publickey = self._config.curve_public_key.encode()
                socket.curve_secretkey = self._config.curve_secret_key.encode()
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            socket.close()
            raise ConfigError(f"worker={self.endpoint!r} is not valid: {error}.") from None
        self._socket = socket
        self._loop.add_reader(socket.fileno(), self._read)

    def close(self) -> None:
        """Leave; what was not sent is dropped."""
        if self._looks_again is not None:
            self._looks_again.cancel()
            self._looks_again = None
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close(linger=0)
            self._socket = None

    def hello(self, hello: Hello) -> None:
        """Say who we are; silently nothing while the worker is away."""
        with contextlib.suppress(WorkerGone):
            self.send(hello)

    def send(self, message: ToWorker) -> None:
        """Queue a message.

        Raises:
            WorkerGone: not connected, or it has not read ten thousand messages.
        """
        if self._socket is None:
            raise WorkerGone(self.endpoint)
        try:
            self._socket.send(encode(message), zmq.NOBLOCK)
        except zmq.ZMQError:
            raise WorkerGone(self.endpoint) from None
        # the descriptor signals edges only, and sending may have swallowed one
        if not self._is_reading and cast(int, self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            self._is_reading = True
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        socket = self._socket
        if socket is None:
            return
        self._is_reading = True
        turn_ends_at = time.monotonic() + _TURN_S
        while time.monotonic() < turn_ends_at:
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                self._is_reading = False
                return
            except zmq.ZMQError as error:
                _log.error("socket_failed", endpoint=self.endpoint, reason=str(error))
                self._is_reading = False
                return
            self._take(frames)
            if self._socket is not socket:  # closed while we told what was in it
                self._is_reading = False
                return
        self._loop.call_soon(self._read)

    def _take(self, frames: list[bytes]) -> None:
        try:
            if len(frames) != 1:
                raise BadMessage(f"{len(frames)} frames")
            message = decode_to_router(frames[0])
        except BadMessage as error:
            self._on_bad_message(self, str(error))
            return
        self.last_heard = self._loop.time()
        try:
            self._on_message(self, message)
        except Exception:  # one message's failure is not the connection's
            _log.exception("message_failed", endpoint=self.endpoint)
