"""Tool calls in the Hermes form: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` in the model's text.

No regular expressions on what a model says. A call comes out whole; what looks like one and is not valid JSON stays
text, as the model wrote it. White space after a call is shown only if text follows it.
"""

from __future__ import annotations

import orjson

from baton.router.openai.parts import CallBegins, Part, new_call_id
from baton.text import held_back

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_MAX_CALL_LEN = 1 << 20


class HermesParser:
    """Text and calls, in order."""

    def __init__(self) -> None:
        self._held = ""
        self._space: str | None = None
        """White space after a call, until text follows; None: what comes is shown as it is."""
        self._is_inside = False
        self._num_calls = 0

    def push(self, text: str, token_id: int) -> list[Part]:
        """Take a piece; return what is certain by now."""
        parts: list[Part] = []
        if not text:
            return parts
        self._held += text
        while True:
            if not self._is_inside:
                at = self._held.find(_OPEN)
                if at < 0:
                    shown = len(self._held) - held_back(self._held, (_OPEN,))
                    self._say(parts, self._held[:shown])
                    self._held = self._held[shown:]
                    return parts
                self._say(parts, self._held[:at])
                self._held = self._held[at + len(_OPEN) :]
                self._is_inside = True
            at = self._held.find(_CLOSE)
            if at < 0:
                return parts + self.finish() if len(self._held) > _MAX_CALL_LEN else parts
            body, self._held = self._held[:at], self._held[at + len(_CLOSE) :]
            self._is_inside = False
            if not self._call(parts, body):
                self._say(parts, _OPEN + body + _CLOSE)

    def finish(self) -> list[Part]:
        """Return what is left; a call that was cut short is text, unless only its closing tag is missing."""
        parts: list[Part] = []
        held, self._held = self._held, ""
        # some models end their answer in place of the closing tag
        if not (self._is_inside and self._call(parts, held)):
            self._say(parts, _OPEN + held if self._is_inside else held)
        self._is_inside = False
        return parts

    def _call(self, parts: list[Part], body: str) -> bool:
        """Read a call; whether it is one."""
        try:
            call = orjson.loads(body)
        except orjson.JSONDecodeError:
            return False
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return False
        arguments = call.get("arguments", {})
        if not isinstance(arguments, str):
            arguments = orjson.dumps(arguments).decode()
        parts.append(CallBegins(self._num_calls, new_call_id(), call["name"], arguments))
        self._num_calls += 1
        self._space = ""
        return True

    def _say(self, parts: list[Part], text: str) -> None:
        if self._space is not None:
            text = self._space + text
            self._space = None if text.strip() else text
        if text and self._space is None:
            parts.append(text)
