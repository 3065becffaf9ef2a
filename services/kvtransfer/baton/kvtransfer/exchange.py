"""What exporter and importer share: commands in from the engine's thread, events out, and which tickets are open."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from baton.kvtransfer.memory import BlockMemory
from baton.kvtransfer.settings import TransferConfig, TransferStats
from baton.kvtransfer.sockets import Context, default_transports, make_context
from baton.kvtransfer.transports.transport import Transport
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
    """One end's way to the thread that transfers. Nothing here waits."""

    _ends: tuple[type, ...] = ()
    """Kinds of events that are the last of their ticket."""

    def __init__(
        self,
        memory: BlockMemory,
        config: TransferConfig | None,
        transports: Sequence[Transport] | None,
        stats: TransferStats | None,
        on_event: Callable[[], None] | None,
    ) -> None:
        """`on_event` is called, in the transferring thread, when there are events to take."""
        self.stats = stats if stats is not None else TransferStats()
        self.wakeup = Wakeup()
        self._memory = memory
        self._config = config or TransferConfig()
        self._transports = tuple(transports) if transports is not None else default_transports()
        self._context: Context = make_context(self._config)
        self._events: deque[E] = deque()
        """The protocol fills it."""
        self._on_event = on_event
        self._commands: deque[Callable[[], None]] = deque()
        self._open: set[Key] = set()

    # For the engine's thread

    def events(self) -> list[E]:
        """Take what has happened since. After a ticket's last event its blocks may be overwritten."""
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

    def _obey(self, stirred: Container[object] = ()) -> None:
        """Do what was told until now; `stirred` tells whether the wake-up was set."""
        if self.wakeup.fileno() in stirred:
            self.wakeup.clear()
        while self._commands:
            self._commands.popleft()()

    def _announce(self) -> None:
        if self._events and self._on_event is not None:
            self._on_event()
