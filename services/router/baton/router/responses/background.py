"""Where a response goes that is made in the background; how errors stand in a stream of a response."""

from __future__ import annotations

from typing import Any

import orjson

from baton.errors import BatonError
from baton.router.event_stream import EventStream
from baton.router.openai.outlets import Keep, Status
from baton.router.openai.refusals import OPENAI_FORM


def _error_event(error: dict[str, Any], _status: int) -> bytes:
    """Write an error in the middle of a stream that no response has begun, or whose client does not read."""
    said = error["error"]
    fields = {"type": "error", "code": said["code"] or said["type"], "message": said["message"], "param": said["param"]}
    return b"event: error\ndata: " + orjson.dumps(fields | {"sequence_number": 0}) + b"\n\n"


RESPONSE_FORM = OPENAI_FORM._replace(event=_error_event)


class BackgroundOutlet:
    """A response that nobody waits for, and its events so far, for those who look in."""

    def __init__(self, keep: Keep, *, has_reader: bool, max_nbytes: int) -> None:
        """Keep events if `has_reader`: there may be one. After the end at most `max_nbytes` of them are kept, or none."""
        self.has_reader = has_reader
        self.is_kept = True
        self._max_nbytes = max_nbytes
        self._is_over = False
        self._keep = keep
        self._events: list[bytes] = []
        self._readers: list[EventStream] = []

    def emit(self, data: bytes) -> None:
        """Take one event."""
        self._events.append(data)
        for reader in self._readers:
            reader.push(data)

    def emit_all(self, data: bytes) -> None:
        """Take events that come at once."""
        self._events.append(data)
        for reader in self._readers:
            reader.push_all(data)

    def refuse(self, error: BatonError, *, has_begun: bool) -> bool:
        """Who asked has an answer already."""
        return False

    def over(self, status: Status, response: bytes, last: bytes) -> None:
        def end() -> None:
            self._events.append(last)
            self._is_over = True
            for reader in self._readers:
                reader.close(last)
            self._readers.clear()
            if sum(map(len, self._events)) > self._max_nbytes:
                self._events, self.is_kept = [], False

        self._keep(status, response, end)

    def read(self, stream: EventStream, after: int) -> None:
        """Send a stream all events but those up to a number, and those that come."""
        known = b"".join(self._events).split(b"\n\n")[after + 1 : -1]
        if known:
            stream.push_all(b"\n\n".join(known) + b"\n\n")
        if self._is_over:
            stream.close()
        else:
            self._readers.append(stream)

    def leave(self, stream: EventStream) -> None:
        """A reader has gone."""
        if stream in self._readers:
            self._readers.remove(stream)
