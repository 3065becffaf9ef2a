"""Tool calls in the Hermes form: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` in the model's text.

No regular expressions on what a model says. A call comes out whole, its arguments in the model's own characters; what
looks like one and is not valid JSON stays text, as the model wrote it. White space after a call is shown only if text
follows it.
"""

from __future__ import annotations

import msgspec

from baton.router.openai.parts import CallBegins, Part, new_call_id
from baton.text import held_back

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_MAX_CALL_LEN = 1 << 20
_NULL = msgspec.Raw(b"null")


class _Call(msgspec.Struct):
    """What a model writes. Some families say parameters for arguments."""

    name: str
    arguments: msgspec.Raw = _NULL
    parameters: msgspec.Raw = _NULL

    def arguments_text(self) -> str:
        """Return the arguments as written: reading and writing them again would change 1.10 and numbers beyond 64 bits."""
        raw = bytes(self.arguments if self.arguments != _NULL else self.parameters)
        if raw == b"null":
            return "{}"
        return msgspec.json.decode(raw, type=str) if raw.startswith(b'"') else raw.decode()


_CALLS = msgspec.json.Decoder(_Call)


class HermesParser:
    """Text and calls, in order. Each piece is looked at once, however long a call grows."""

    marks = (_OPEN, _CLOSE)

    def __init__(self) -> None:
        self._held = ""
        """The end of the text: it may become a tag."""
        self._body: list[str] = []
        """A call's text so far, without what is held."""
        self._body_len = 0
        self._space: str | None = None
        """White space after a call, until text follows; None: what comes is shown as it is."""
        self._is_inside = False
        self._num_calls = 0

    def push(self, text: str, token_id: int) -> list[Part]:
        """Take a piece; return what is certain by now."""
        parts: list[Part] = []
        text = self._held + text
        while text:
            tag = _CLOSE if self._is_inside else _OPEN
            at = text.find(tag)
            if at < 0:
                break
            self._take(parts, text[:at])
            text = text[at + len(tag) :]
            if self._is_inside:
                self._close(parts, _CLOSE)
            else:
                self._is_inside = True
        certain_len = len(text) - (held_back(text, (_CLOSE if self._is_inside else _OPEN,)) if text else 0)
        self._take(parts, text[:certain_len])
        self._held = text[certain_len:]
        if self._body_len > _MAX_CALL_LEN:
            parts += self.finish()
        return parts

    def finish(self) -> list[Part]:
        """Return what is left; a call that was cut short is text, unless only its closing tag is missing."""
        parts: list[Part] = []
        held, self._held = self._held, ""
        self._take(parts, held)
        if self._is_inside:  # some models end their answer in place of the closing tag
            self._close(parts, "")
        return parts

    def _take(self, parts: list[Part], text: str) -> None:
        if self._is_inside:
            self._body.append(text)
            self._body_len += len(text)
        else:
            self._say(parts, text)

    def _close(self, parts: list[Part], tag: str) -> None:
        """End the call, which is text if it cannot be read as one."""
        body = "".join(self._body)
        self._body, self._body_len, self._is_inside = [], 0, False
        try:
            call = _CALLS.decode(body)
        except (msgspec.DecodeError, RecursionError):
            self._say(parts, _OPEN + body + tag)
            return
        parts.append(CallBegins(self._num_calls, new_call_id(), call.name, call.arguments_text()))
        self._num_calls += 1
        self._space = ""

    def _say(self, parts: list[Part], text: str) -> None:
        if self._space is not None:
            text = self._space + text
            self._space = None if text.strip() else text
        if text and self._space is None:
            parts.append(text)
