"""The parts of an answer, between the model's text and the client's event or body, and how a choice's tokens become them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Protocol

import msgspec

from baton.text import AnswerText

Text = str
"""Text is its own part: most answers have no other, and a token must not cost an object."""


class Reasoning(msgspec.Struct, frozen=True, gc=False):
    """What the model thinks before it answers."""

    text: str


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """Why the model does not answer."""

    text: str


class CallBegins(msgspec.Struct, frozen=True, gc=False):
    """The model calls a function. Calls of a choice are numbered from 0."""

    index: int
    call_id: str
    name: str
    arguments: str = ""
    """JSON text, as far as it is known already."""


class CallArguments(msgspec.Struct, frozen=True, gc=False):
    """More of a call's arguments."""

    index: int
    arguments: str


Part = Text | Reasoning | Refusal | CallBegins | CallArguments
Shown = Text | list[Part]
"""What is shown of one token: its text alone, or its parts."""


class AnswerParser(Protocol):
    """Tells apart what one choice's text means. One model family's way to write it is one file in `parsers`."""

    @property
    def marks(self) -> tuple[str, ...]:
        """What it looks for; where that is a special token, it is left in the text for the parser."""

    def push(self, text: str, token_id: int) -> list[Part]:
        """Take a token and the text that it completes, which may be none; return the parts that are certain by now."""

    def finish(self) -> list[Part]:
        """Return what was held back, at the choice's end."""


NewParser = Callable[[], AnswerParser]
"""Makes the parser of one choice."""


class AnswerParts:
    """One choice's tokens becoming parts. A choice without a parser needs only `AnswerText`: its text is its part."""

    __slots__ = ("_is_thinking", "_parser", "_shows_reasoning", "_text", "num_reasoning")

    def __init__(self, text: AnswerText, parser: AnswerParser, *, shows_reasoning: bool = True) -> None:
        self._text = text
        self._parser = parser
        self._shows_reasoning = shows_reasoning
        self._is_thinking = False
        self.num_reasoning = 0
        """Tokens of what the model thought, shown or not."""

    def push(self, token_id: int, finish_reason: str | None) -> tuple[list[Part], str | None]:
        """Take a token; return the parts that it completes, and the stop string if one has ended the choice."""
        text, stop = self._text.push(token_id, finish_reason)
        parts = self._parser.push(text, token_id)
        if parts:  # one that completes nothing counts as what came before it
            self._is_thinking = isinstance(parts[0], Reasoning)
        self.num_reasoning += self._is_thinking
        if finish_reason is not None or stop is not None:
            parts += self._parser.finish()
        if not self._shows_reasoning:
            parts = [part for part in parts if not isinstance(part, Reasoning)]
        return parts, stop


def new_call_id() -> str:
    """Make the id under which a client answers a call."""
    return f"call_{uuid.uuid4().hex[:24]}"
