"""MessageWriter: an answer's blocks as Anthropic's content blocks, and as its events where somebody streams them.

A token of plain text builds one string and nothing else.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
import orjson

from baton.errors import BatonError
from baton.router.anthropic.errors import ANTHROPIC_FORM
from baton.router.openai.blocks import Kind
from baton.router.openai.open_request import Tally
from baton.router.openai.outlets import Outlet
from baton.router.openai.parts import CallBegins
from baton.router.openai.refusals import error_of

_SIGNATURE = "baton"
"""Of thinking. Nothing is signed: clients look whether there is one."""
_FIELDS = {
    Kind.TEXT: (b"text_delta", b"text"),
    Kind.REFUSAL: (b"text_delta", b"text"),
    Kind.REASONING: (b"thinking_delta", b"thinking"),
    Kind.CALL: (b"input_json_delta", b"partial_json"),
}
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'


class MessageWriter:
    """Writes one message."""

    def __init__(self, model: str, outlet: Outlet) -> None:
        self._frame: dict[str, Any] = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": model,
            **dict.fromkeys(("container", "diagnostics", "stop_details")),
        }
        self._outlet = outlet
        self._emit = outlet.emit
        self._has_reader = outlet.has_reader
        self._has_begun = self._has_refused = self._has_called = False
        self._blocks: list[bytes] = []
        self._kind = Kind.TEXT
        self._call: CallBegins | None = None
        self._texts: list[str] = []
        self._before = b""
        """What stands in a delta's event before its text."""

    def begin(self, tally: Tally) -> None:
        """Write the first events."""
        self._has_begun = True
        if self._has_reader:
            begun: dict[str, Any] = {
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": _usage(tally, 0),
            }
            message = orjson.dumps(self._frame | begun)
            self._outlet.emit_all(
                b'event: message_start\ndata: {"type":"message_start","message":%b}\n\n' % message + _PING
            )

    def open(self, kind: Kind, call: CallBegins | None) -> None:
        """Begin a block."""
        self._kind, self._call, self._texts = kind, call, []
        self._has_refused |= kind is Kind.REFUSAL
        self._has_called |= kind is Kind.CALL
        if not self._has_reader:
            return
        index = len(self._blocks)
        name, field = _FIELDS[kind]
        delta = b'"index":%d,"delta":{"type":"%b","%b":' % (index, name, field)
        self._before = b'event: content_block_delta\ndata: {"type":"content_block_delta",' + delta
        head = b'event: content_block_start\ndata: {"type":"content_block_start","index":%d,"content_block":' % index
        self._outlet.emit_all(head + self._block(b"{}" if kind is Kind.CALL else b'""') + b"}\n\n")

    def add(self, text: str, _scores: Sequence[bytes]) -> None:
        """Add to the block."""
        self._texts.append(text)
        if self._has_reader:
            self._emit(b"".join((self._before, orjson.dumps(text), b"}}\n\n")))

    def close(self, *, is_whole: bool) -> None:
        """End the block."""
        if self._has_reader:
            index = len(self._blocks)
            signed = b""
            if self._kind is Kind.REASONING:
                delta = b'"delta":{"type":"signature_delta","signature":"%b"}' % _SIGNATURE.encode()
                at = b'"index":%d,' % index
                signed = b'event: content_block_delta\ndata: {"type":"content_block_delta",%b%b}\n\n' % (at, delta)
            end = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n' % index
            self._outlet.emit_all(signed + end)
        text = "".join(self._texts)
        self._blocks.append(self._block(_input(text) if self._kind is Kind.CALL else orjson.dumps(text), _SIGNATURE))

    def end(self, finish_reason: str, stop_reason: int | str | None, tally: Tally, num_reasoning: int) -> None:
        """Write the last events."""
        stop_sequence = stop_reason if isinstance(stop_reason, str) else None
        if finish_reason == "length":
            reason = "max_tokens"
        elif stop_sequence is not None:
            reason = "stop_sequence"
        elif self._has_called:
            reason = "tool_use"
        else:
            reason = "refusal" if self._has_refused else "end_turn"
        ended = {"stop_reason": reason, "stop_sequence": stop_sequence}
        usage = _usage(tally, num_reasoning)
        body = orjson.dumps(self._frame | ended | {"usage": usage})[:-1]
        content = b",".join(self._blocks)
        last = b'event: message_delta\ndata: {"type":"message_delta","delta":%b,"usage":%b}\n\n' % (
            orjson.dumps(ended | {"container": None, "stop_details": None}),
            orjson.dumps({name: usage[name] for name in _TOLD_LAST}),
        )
        last += b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
        self._outlet.over("completed", b'%b,"content":[%b]}' % (body, content), last)

    def fail(self, error: BatonError) -> None:
        """Say that the request has failed: as an answer of its own if none has begun, else as the last event."""
        if not self._outlet.refuse(error, has_begun=self._has_begun):
            self._outlet.over("failed", b"", ANTHROPIC_FORM.event(error_of(error), error.status))

    def _block(self, content: bytes, signature: str = "") -> bytes:
        """Write the block with this content."""
        if self._kind is Kind.CALL:
            assert self._call is not None
            called = {"type": "tool_use", "id": self._call.call_id, "name": self._call.name}
            return orjson.dumps(called)[:-1] + b',"input":%b}' % content
        if self._kind is Kind.REASONING:
            return b'{"type":"thinking","thinking":%b,"signature":"%b"}' % (content, signature.encode())
        return b'{"type":"text","text":%b,"citations":null}' % content


_TOLD_LAST = (
    *("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens"),
    *("output_tokens_details", "server_tool_use"),
)


def _usage(tally: Tally, num_reasoning: int) -> dict[str, Any]:
    """Return Anthropic's usage object: what was cached is no part of the input."""
    usage: dict[str, Any] = tally.usage()
    num_cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"] - num_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": num_cached,
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"thinking_tokens": num_reasoning},
        "service_tier": "standard",
        **dict.fromkeys(("cache_creation", "inference_geo", "server_tool_use", "speed")),
    }


def _input(arguments: str) -> bytes:
    """Return a call's arguments as the object that clients want, in the model's own characters where they are one."""
    try:
        msgspec.json.decode(arguments or "{}", type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):  # cut short, or no object
        return orjson.dumps({"arguments": arguments})
    return (arguments or "{}").encode()
