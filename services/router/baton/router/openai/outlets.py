"""Where an answer goes that a writer writes in its API's form: to a stream, or into one body."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal, Protocol

from baton.errors import BatonError
from baton.router.event_stream import EventStream

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
Keep = Callable[[Status, bytes, Callable[[], None]], None]
"""Takes the status, the whole answer, and what to do when it is kept, so that a client may build on it at once."""


def keep_nothing(_status: Status, _answer: bytes, then: Callable[[], None]) -> None:
    """Do at once what is to be done."""
    then()


class Outlet(Protocol):
    """Where an answer goes."""

    @property
    def has_reader(self) -> bool:
        """Whether anybody reads events."""

    @property
    def emit(self) -> Callable[[bytes], None]:
        """Takes one event."""

    @property
    def emit_all(self) -> Callable[[bytes], None]:
        """Takes events that come at once, of any length."""

    def refuse(self, error: BatonError, /, *, has_begun: bool) -> bool:
        """Take an error as an answer of its own; whether it does."""

    def over(self, status: Status, response: bytes, last: bytes, /) -> None:
        """Take the whole answer, and its last events."""


class StreamOutlet:
    """An answer as a stream of events."""

    has_reader = True

    def __init__(self, stream: EventStream, keep: Keep) -> None:
        self.emit = stream.push
        self.emit_all = stream.push_all
        self._stream = stream
        self._keep = keep

    def refuse(self, error: BatonError, *, has_begun: bool) -> bool:
        """An error before any event is an answer of its own."""
        if not has_begun:
            self._stream.fail(error)
        return not has_begun

    def over(self, status: Status, response: bytes, last: bytes) -> None:
        self._keep(status, response, lambda: self._stream.close(last))


class WholeOutlet:
    """An answer as one body."""

    has_reader = False

    def __init__(self, done: asyncio.Future[None], keep: Keep) -> None:
        self.body = b""
        self._done = done
        self._keep = keep

    def emit(self, data: bytes) -> None:
        """Nobody reads events."""

    emit_all = emit

    def refuse(self, error: BatonError, *, has_begun: bool) -> bool:
        """Any error is the answer."""
        if not self._done.done():
            self._done.set_exception(error)
        return True

    def over(self, status: Status, response: bytes, last: bytes) -> None:
        self.body = response
        self._keep(status, response, self._end)

    def _end(self) -> None:
        if not self._done.done():
            self._done.set_result(None)
