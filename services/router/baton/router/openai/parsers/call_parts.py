"""CallParts: the parts that a parser of calls has found, and the text that may become a call or may not.

A call of a streamed answer is shown from its name on, its arguments as they come; that of a whole answer when all of it
is there, so that a broken one can still be text. Either way what is no call is shown as the model wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from baton.router.openai.parsers.json_calls import is_json
from baton.router.openai.parts import CallArguments, CallBegins, Part, Reasoning, new_call_id

_MAX_HELD_LEN = (1 << 20) + (1 << 10)


@dataclass(frozen=True, slots=True)
class Offered:
    """What a parser of calls may know of its request."""

    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The functions that the model may call, with the JSON Schema of their arguments."""
    streams: bool = False
    """Calls are shown while they are written."""


class CallParts:
    """Parts in order. Calls are numbered; white space behind one is shown only if text follows it."""

    def __init__(self, *, streams: bool, new_id: Callable[[], str] = new_call_id) -> None:
        self.streams = streams
        """Calls are shown while they are written."""
        self._new_id = new_id
        self._parts: list[Part] = []
        self._held: list[str] = []
        """Text of what may become a call, as the model wrote it."""
        self._held_len = 0
        self._begun: CallBegins | None = None
        self._arguments: list[str] = []
        """Of the call that has begun, where it is shown as a whole."""
        self._space: str | None = None
        """White space behind a call, until text follows; None: what comes is shown as it is."""
        self._num_calls = 0

    @property
    def is_begun(self) -> bool:
        """Whether a call has begun and not ended."""
        return self._begun is not None

    @property
    def is_too_long(self) -> bool:
        """Whether more is held than any call has."""
        return self._held_len > _MAX_HELD_LEN

    def say(self, text: str) -> None:
        """Show text."""
        if self._space is not None:
            text = self._space + text
            self._space = None if text.strip() else text
        if text and self._space is None:
            self._parts.append(text)

    def think(self, text: str) -> None:
        """Show what the model thinks."""
        self._parts.append(Reasoning(text))

    def hold(self, text: str) -> None:
        """Keep text that belongs to a call if it becomes one."""
        if not (self.streams and self._begun):
            self._held.append(text)
            self._held_len += len(text)

    def give_up(self) -> None:
        """Show what is held as text: it is no call. One that is shown already stays."""
        held = "".join(self._held)
        self.drop()
        self.say(held)

    def drop(self) -> None:
        """Let go of what is held: it says nothing."""
        self._held, self._held_len, self._begun, self._arguments = [], 0, None, []

    def begin(self, name: str, call_id: str | None = None) -> None:
        """Begin a call."""
        self._begun = CallBegins(self._num_calls, call_id or self._new_id(), name)
        if self.streams:
            self._held, self._held_len = [], 0
            self._show(self._begun)

    def more(self, arguments: str) -> None:
        """Take more of the arguments."""
        if self._begun is None:
            return
        if not self.streams:
            self._arguments.append(arguments)
        elif arguments:
            self._parts.append(CallArguments(self._begun.index, arguments))

    def arguments(self) -> str:
        """Return the arguments of a call that is shown as a whole."""
        return "".join(self._arguments)

    def end(self) -> None:
        """End the call: it is one."""
        if self._begun is None:
            return
        if not self.streams:
            self._show(CallBegins(self._begun.index, self._begun.call_id, self._begun.name, self.arguments()))
        elif self._space is not None:
            self._space = ""  # what stood within is no white space behind it
        self.drop()

    def end_as_written(self) -> None:
        """End the call if its arguments, as far as they have come, are JSON, or are shown already; else it is text."""
        if self._begun is not None and (self.streams or is_json(self.arguments())):
            self.end()
        else:
            self.give_up()

    def add(self, name: str, arguments: str) -> None:
        """Take a call as a whole, in place of what is held."""
        self.drop()
        self._show(CallBegins(self._num_calls, self._new_id(), name, arguments))

    def take(self) -> list[Part]:
        """Return the parts that are new, once."""
        parts, self._parts = self._parts, []
        return parts

    def _show(self, call: CallBegins) -> None:
        self._parts.append(call)
        self._num_calls += 1
        self._space = ""
