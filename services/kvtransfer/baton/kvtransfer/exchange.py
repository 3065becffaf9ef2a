"""What passes between the engine's thread and the one that transfers: commands in, events out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from baton.kvtransfer.wire import Key
from baton.wakeup import Wakeup


class Event(Protocol):
    """Something that happened to a ticket."""

    @property
    def request_id(self) -> bytes: ...
    @property
    def epoch(self) -> int: ...


E = TypeVar("E", bound=Event)


class Exchange(Generic[E]):
    """Commands, events and open tickets of an exporter or an importer. Nothing here waits."""

    def __init__(self, events: deque[E], ends: tuple[type, ...], on_event: Callable[[], None] | None) -> None:
        """Hand out `events`, which the protocol fills; those of the kinds `ends` are the last of their ticket.

        `on_event` is called, in the transferring thread, when there are events to take.
        """
        self.wakeup = Wakeup()
        self._events = events
        self._ends = ends
        self._on_event = on_event
        self._commands: deque[Callable[[], None]] = deque()
        self._open: set[Key] = set()

    # For the engine's thread

    def open(self, key: Key) -> None:
        """Note a new ticket.

        Raises:
            ValueError: it is open already.
        """
        if key in self._open:
            raise ValueError(f"request {key[0].hex()} epoch {key[1]} is already open here")
        self._open.add(key)

    def tell(self, command: Callable[..., None], *args: Any) -> None:
        """Have a command obeyed soon, after those before it."""
        self._commands.append(partial(command, *args))
        self.wakeup.set()

    def take(self) -> list[E]:
        """Take the events since the last time."""
        taken = []
        while self._events:
            event = self._events.popleft()
            if isinstance(event, self._ends):
                self._open.discard((event.request_id, event.epoch))
            taken.append(event)
        return taken

    @property
    def num_open(self) -> int:
        """Tickets whose last event was not taken yet."""
        return len(self._open)

    # For the thread that transfers

    def obey(self, stirred: Container[object] = ()) -> None:
        """Do what was told until now; `stirred` tells whether the wake-up was set."""
        if self.wakeup.fileno() in stirred:
            self.wakeup.clear()
        while self._commands:
            self._commands.popleft()()

    def announce(self) -> None:
        """Say that there are events, if there are."""
        if self._events and self._on_event is not None:
            self._on_event()
