"""What exporter and importer share: commands in from the engine's thread, events out, and the transferring thread's turns."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Container, Mapping
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

import zmq

from baton.kvtransfer.exports import Exports, Released
from baton.kvtransfer.imports import Event, Imports, Landed
from baton.kvtransfer.side import Side
from baton.kvtransfer.sockets import Act, receive
from baton.kvtransfer.transports.transport import Socket
from baton.kvtransfer.wire import Key
from baton.wakeup import Wakeup

E = TypeVar("E", bound=Released | Event)


class Exchange(ABC, Generic[E]):
    """One end of a worker's transfers. A `TransferThread` calls `sockets`, `service` and `close`, the engine's the rest.

    Only `close` waits for anything. What may be sent and what counts is decided in `exports.py` and `imports.py`.
    """

    _messages_a_turn: ClassVar[int]
    """Of one socket, before the others have theirs."""

    def __init__(self, side: Side, protocol: Exports | Imports, events: deque[E]) -> None:
        """`events` are the protocol's."""
        self.wakeup = Wakeup()
        self.stats = side.stats
        self._side = side
        self._protocol = protocol
        self._events = events
        self._context: zmq.Context[Any] = zmq.Context(io_threads=side.config.num_stripes)
        self._commands: deque[Callable[[], None]] = deque()
        self._open: set[Key] = set()

    # For the engine's thread

    def events(self) -> list[E]:
        """Take what has happened since. After a ticket's last event its blocks may be overwritten."""
        taken = []
        while self._events:
            event = self._events.popleft()
            if not isinstance(event, Landed):
                self._open.discard((event.request_id, event.epoch))
            taken.append(event)
        return taken

    @property
    def num_open(self) -> int:
        """Tickets whose last event was not taken yet."""
        return len(self._open)

    def _begin(self, key: Key) -> None:
        """Note a new ticket.

        Raises:
            ValueError: it is open already.
        """
        if key in self._open:
            raise ValueError(f"request {key[0].hex()} epoch {key[1]} is already open here")
        self._open.add(key)

    def _tell(self, command: Callable[..., None], *args: Any) -> None:
        """Have a command obeyed soon, after those before it."""
        self._commands.append(partial(command, *args))
        self.wakeup.set()

    # For the thread that transfers

    @abstractmethod
    def sockets(self) -> Mapping[Socket, Act]:
        """Sockets on which peers speak, and what acts on their messages."""

    def service(self, stirred: Container[Socket | int]) -> float:
        """Do all that can be done now; return the seconds until there may be more, if no socket stirs before.

        `stirred` has the sockets that may be read, and the wake-up's descriptor if it was set: asking the others
        costs as much as a small message.
        """
        if self.wakeup.fileno() in stirred:
            self.wakeup.clear()
        self._obey()
        more = False
        for socket, act in self.sockets().items():
            if socket in stirred:
                more |= receive(socket, self._messages_a_turn, act)
        self._protocol.sweep()
        more |= self._send()
        self._announce()
        return 0.0 if more else self._protocol.seconds_to_sweep()

    def close(self) -> None:
        """End all that is open, tell the peers, and disconnect. Every open ticket gets its last event."""
        self._obey()
        self._protocol.close()
        self._disconnect()
        self._announce()
        self.wakeup.close()

    @abstractmethod
    def _send(self) -> bool:
        """Send what the protocol and the sockets allow; True: there may be more."""

    @abstractmethod
    def _disconnect(self) -> None:
        """Send the last messages, close the sockets, and `_settle`."""

    def _settle(self, seconds: float) -> None:
        """Wait until nothing reads or writes blocks any more, at most so long."""
        deadline = time.monotonic() + seconds
        while self._protocol.num_open and time.monotonic() < deadline:
            self._protocol.sweep()
            time.sleep(0.001)

    def _obey(self) -> None:
        while self._commands:
            self._commands.popleft()()

    def _announce(self) -> None:
        if self._events:
            self._side.on_event()
