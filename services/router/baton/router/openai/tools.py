"""Tool calls in the Hermes form: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` in the model's text.

A linear scan, no regular expressions on what a model says. A call comes out whole; what looks like one and is not
valid JSON stays text, as the model wrote it.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import orjson

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_MAX_CALL_LEN = 1 << 20


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that the model asks for."""

    name: str
    arguments: str
    """JSON text."""

    def as_message(self, index: int | None = None) -> dict[str, Any]:
        """Give it as in an assistant message, or with an index as in a stream's delta."""
        call: dict[str, Any] = {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }
        return call if index is None else {"index": index} | call


class ToolCallParser:
    """Text pieces in; text and calls out, in order."""

    def __init__(self) -> None:
        self._held = ""
        self._is_inside = False
        self.num_calls = 0

    def push(self, text: str) -> list[str | ToolCall]:
        """Take a piece; give what is certain by now."""
        self._held += text
        out: list[str | ToolCall] = []
        while True:
            if not self._is_inside:
                at = self._held.find(_OPEN)
                if at < 0:
                    keep = _overlap(self._held, _OPEN)
                    _append(out, self._held[: len(self._held) - keep])
                    self._held = self._held[len(self._held) - keep :]
                    return out
                _append(out, self._held[:at])
                self._held = self._held[at + len(_OPEN) :]
                self._is_inside = True
            at = self._held.find(_CLOSE)
            if at < 0:
                if len(self._held) > _MAX_CALL_LEN:
                    out += self.flush()
                return out
            body, self._held = self._held[:at], self._held[at + len(_CLOSE) :]
            self._is_inside = False
            call = _parse_call(body)
            if call is None:
                _append(out, _OPEN + body + _CLOSE)
            else:
                self.num_calls += 1
                out.append(call)

    def flush(self) -> list[str | ToolCall]:
        """Give what is left at the end; a call that was cut short stays text, unless only its end is missing."""
        held, self._held = self._held, ""
        if self._is_inside:
            self._is_inside = False
            call = _parse_call(held)
            if call is not None:  # some models end their answer in place of the closing tag
                self.num_calls += 1
                return [call]
            held = _OPEN + held
        return [held] if held else []


def parse_tool_calls(text: str) -> tuple[str | None, list[ToolCall]]:
    """Split a whole answer into its text (None if there is none beside calls) and its calls."""
    parser = ToolCallParser()
    parts = parser.push(text) + parser.flush()
    calls = [part for part in parts if isinstance(part, ToolCall)]
    rest = "".join(part for part in parts if isinstance(part, str))
    if calls and not rest.strip():
        return None, calls
    return rest, calls


def _parse_call(body: str) -> ToolCall | None:
    try:
        call = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", {})
    return ToolCall(call["name"], arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode())


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that begins `tag`."""
    for size in range(min(len(tag) - 1, len(text)), 0, -1):
        if tag.startswith(text[-size:]):
            return size
    return 0


def _append(out: list[str | ToolCall], text: str) -> None:
    if text:
        out.append(text)
