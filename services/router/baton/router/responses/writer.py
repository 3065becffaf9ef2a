"""ResponseWriter: an answer's blocks as the items of a response, and as its events where somebody streams them.

A token of plain text builds one string and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from baton.errors import BatonError
from baton.requests.response_items import sealed
from baton.router.openai.blocks import Kind
from baton.router.openai.open_request import Tally
from baton.router.openai.outlets import Outlet, Status
from baton.router.openai.parts import CallBegins
from baton.router.responses.frame import ResponseFrame, response_error, response_usage

_NAMES = {Kind.TEXT: "msg", Kind.REFUSAL: "msg", Kind.REASONING: "rs", Kind.CALL: "fc"}
_DELTAS = {
    Kind.TEXT: b"output_text",
    Kind.REFUSAL: b"refusal",
    Kind.REASONING: b"reasoning_text",
    Kind.CALL: b"function_call_arguments",
}


class ResponseWriter:
    """Writes one response."""

    def __init__(self, frame: ResponseFrame, outlet: Outlet, *, seals_reasoning: bool) -> None:
        self.output: list[bytes] = []
        self.has_begun = self.is_over = False
        self._frame = frame
        self._outlet = outlet
        self._emit = outlet.emit
        self._events: list[bytes] | None = [] if outlet.has_reader else None
        """Those that leave together."""
        self._seals_reasoning = seals_reasoning
        self._sequence_number = 0
        self._is_announced = False
        self._kind = Kind.TEXT
        self._is_open = False
        self._at = b""
        self._id = b""
        self._call: CallBegins | None = None
        self._texts: list[str] = []
        self._scores: list[bytes] = []
        self._before = self._between = b""
        """What stands in a delta's event before its text, and between that and its scores or its number."""

    def queue(self) -> None:
        """Write the first events of a response that is made in the background."""
        self._is_announced = True
        self._state_event(b"created", "queued")
        self._state_event(b"queued", "queued")
        self._flush()

    def begin(self, _tally: Tally) -> None:
        """Write the first events."""
        self.has_begun = True
        if not self._is_announced:
            self._state_event(b"created", "in_progress")
        self._state_event(b"in_progress", "in_progress")
        self._flush()

    def open(self, kind: Kind, call: CallBegins | None) -> None:
        """Begin an item."""
        self._kind, self._call, self._texts, self._scores, self._is_open = kind, call, [], [], True
        index = len(self.output)
        self._id = f"{_NAMES[kind]}_{self._frame.name}{index:04x}".encode()
        if self._events is None:
            return
        at = b'"item_id":"%b","output_index":%d,' % (self._id, index)
        if kind is not Kind.CALL:
            at += b'"content_index":0,'
        self._event(b"response.output_item.added", b'"output_index":%d,"item":%b,' % (index, self._item("in_progress")))
        if kind is not Kind.CALL:
            self._event(b"response.content_part.added", at + b'"part":%b,' % self._part())
        name = b"response.%b.delta" % _DELTAS[kind]
        self._before = b'event: %b\ndata: {"type":"%b",%b"delta":' % (name, name, at)
        self._between = b',"logprobs":[' if kind is Kind.TEXT else b""
        self._at = at
        self._flush()

    def add(self, text: str, scores: Sequence[bytes]) -> None:
        """Add to the item."""
        self._texts.append(text)
        if scores:
            self._scores += scores
        if self._events is not None:
            end = b'"sequence_number":%d}\n\n' % self._sequence_number
            self._sequence_number += 1
            middle = b"".join((self._between, b",".join(scores), b"],")) if self._between else b","
            self._emit(b"".join((self._before, orjson.dumps(text), middle, end)))

    def close(self, *, is_whole: bool) -> None:
        """End the item."""
        item = self._item("completed" if is_whole else "incomplete")
        if self._events is not None:
            text = orjson.dumps("".join(self._texts))
            kind, index = self._kind, len(self.output)
            name = b"response.%b.done" % _DELTAS[kind]
            if kind is Kind.CALL:
                assert self._call is not None
                called = orjson.dumps(self._call.name)
                self._event(name, self._at + b'"name":%b,"arguments":%b,' % (called, text))
            elif kind is Kind.TEXT:
                self._event(name, self._at + b'"text":%b,"logprobs":[%b],' % (text, b",".join(self._scores)))
            else:
                self._event(name, self._at + b'"%b":%b,' % (b"refusal" if kind is Kind.REFUSAL else b"text", text))
            if kind is not Kind.CALL:
                self._event(b"response.content_part.done", self._at + b'"part":%b,' % self._part())
            self._event(b"response.output_item.done", b'"output_index":%d,"item":%b,' % (index, item))
        self.output.append(item)
        self._texts, self._scores, self._is_open = [], [], False

    def end(self, finish_reason: str, _stop_reason: int | str | None, tally: Tally, num_reasoning: int) -> None:
        """Write the last event."""
        status: Status = "incomplete" if finish_reason == "length" else "completed"
        self._over(status, self._frame.write(status, self.output, usage=response_usage(tally, num_reasoning)))

    def fail(self, error: BatonError) -> None:
        """Say that the request has failed: as an answer of its own if none has begun, else as the last event."""
        if self.is_over:
            return
        if self._outlet.refuse(error, has_begun=self.has_begun):
            self.is_over = True
        else:
            self._break_off()
            self._over("failed", self._frame.write("failed", self.output, error=response_error(error)))

    def cancel(self) -> None:
        """Nobody wants it any more."""
        self._break_off()
        self._over("cancelled", self._frame.write("cancelled", self.output))

    def _break_off(self) -> None:
        if self._is_open and not self.is_over:
            self.close(is_whole=False)

    def _over(self, status: Status, response: bytes) -> None:
        if self.is_over:
            return
        self.is_over = True
        if status != "cancelled":  # for which there is no event
            self._event(b"response." + status.encode(), b'"response":%b,' % response)
        self._outlet.over(status, response, b"".join(self._events or ()))
        self._events = None

    def _state_event(self, name: bytes, status: str) -> None:
        if self._events is not None:
            self._event(b"response." + name, b'"response":%b,' % self._frame.write(status))

    def _event(self, name: bytes, fields: bytes) -> None:
        if self._events is not None:
            number = self._sequence_number
            self._sequence_number += 1
            self._events.append(
                b'event: %b\ndata: {"type":"%b",%b"sequence_number":%d}\n\n' % (name, name, fields, number)
            )

    def _flush(self) -> None:
        if self._events:
            events = b"".join(self._events)
            self._events.clear()
            self._outlet.emit_all(events)

    def _item(self, status: str) -> bytes:
        """Write the item as far as it has come."""
        shown = b'{"id":"%b","status":"%b",' % (self._id, status.encode())
        if self._kind is Kind.CALL:
            assert self._call is not None
            called = {"type": "function_call", "call_id": self._call.call_id, "name": self._call.name}
            return shown + orjson.dumps(called | {"arguments": "".join(self._texts)})[1:]
        content = self._part() if status != "in_progress" else b""
        if self._kind is Kind.REASONING:
            text = "".join(self._texts)
            seal = orjson.dumps(sealed(text) if self._seals_reasoning and status != "in_progress" else None)
            return shown + b'"type":"reasoning","summary":[],"content":[%b],"encrypted_content":%b}' % (content, seal)
        return shown + b'"type":"message","role":"assistant","content":[%b]}' % content

    def _part(self) -> bytes:
        """Write the only part of a message's, or of reasoning's, content as far as it has come."""
        text = orjson.dumps("".join(self._texts))
        if self._kind is Kind.TEXT:
            scores = b",".join(self._scores)
            return b'{"type":"output_text","text":%b,"annotations":[],"logprobs":[%b]}' % (text, scores)
        if self._kind is Kind.REFUSAL:
            return b'{"type":"refusal","refusal":%b}' % text
        return b'{"type":"reasoning_text","text":%b}' % text
