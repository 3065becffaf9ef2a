"""An answer as blocks, each of one kind, one after another: what APIs write that know items or content blocks.

A sink cuts one choice's parts into blocks, and a writer writes them in its API's form. White space before a call, or
before reasoning, is no block of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

from baton.errors import BatonError
from baton.messages import Token, TokenLogprobs
from baton.router.openai.open_request import Tally
from baton.router.openai.parts import CallArguments, CallBegins, Part, Reasoning
from baton.router.sink import Usage


class Kind(Enum):
    """What a block holds."""

    TEXT = auto()
    REASONING = auto()
    REFUSAL = auto()
    CALL = auto()


_TEXT, _REASONING, _REFUSAL, _CALL = Kind
_NO_SCORES: list[bytes] = []


class BlockWriter(Protocol):
    """Writes an answer's blocks. Calls never block and never raise."""

    def begin(self, tally: Tally, /) -> None:
        """The first token is there; `tally` knows what the prompt found in caches."""

    def open(self, kind: Kind, call: CallBegins | None, /) -> None:
        """Begin a block; `call` is there for a call."""

    def add(self, text: str, scores: list[bytes], /) -> None:
        """Add to the block that is open; `scores` are those of its tokens, as JSON, if they were asked for."""

    def close(self, *, is_whole: bool) -> None:
        """End the block that is open."""

    def end(self, finish_reason: str, stop_reason: int | str | None, tally: Tally, num_reasoning: int, /) -> None:
        """All is written; `num_reasoning` of the answer's tokens were reasoning."""

    def fail(self, error: BatonError, /) -> None:
        """The request has failed; nothing follows."""


class BlockSink:
    """A sink: one choice, cut into blocks."""

    def __init__(
        self,
        writer: BlockWriter,
        tally: Tally,
        prompt_len: int,
        write_score: Callable[[TokenLogprobs], bytes] | None,
        on_failed: Callable[[], None],
    ) -> None:
        self._writer = writer
        self._tally = tally
        self._prompt_len = prompt_len
        self._write_score = write_score
        self._on_failed = on_failed
        self._has_begun = False
        self._kind: Kind | None = None
        """Of the block that is open."""
        self._has_answer = False
        """Whether a block was written that is no reasoning."""
        self._space = ""
        """White space that is a part of the text if text follows."""
        self._scores: list[bytes] = []
        """Of tokens whose text has not come yet."""
        self._num_reasoning = self._num_unclaimed = 0
        """Tokens of reasoning; tokens before any block, which may be its opening mark."""
        self._finish_reason = ""
        self._stop_reason: int | str | None = None

    def push(
        self,
        _choice: int,
        shown: str | list[Part],
        token: Token,
        finish_reason: str | None,
        stop_reason: int | str | None,
    ) -> None:
        """Write a token's parts."""
        if self._kind is _TEXT and finish_reason is None and type(shown) is str and shown and self._write_score is None:
            self._writer.add(shown, _NO_SCORES)
            return
        if not self._has_begun:
            self._has_begun = True
            tally = copy.copy(self._tally)
            tally.begin(token, self._prompt_len)
            self._writer.begin(tally)
        if self._write_score is not None and token.logprobs is not None:
            self._scores.append(self._write_score(token.logprobs))
        if isinstance(shown, str):
            self._take_text(shown)
        else:
            self._count(shown)
            for part in shown:
                self._take(part)
        if finish_reason is not None:
            self._finish(finish_reason, stop_reason)

    def end(self, usage: Usage) -> None:
        """The choice has ended."""
        self._tally.end(usage)
        self._writer.end(self._finish_reason, self._stop_reason, self._tally, self._num_reasoning)

    def fail(self, error: BatonError) -> None:
        """The request has failed."""
        self._writer.fail(error)
        self._on_failed()

    def _take(self, part: Part) -> None:
        if isinstance(part, str):
            self._take_text(part)
        elif isinstance(part, CallBegins):
            self._open(_CALL, part)
            if part.arguments:
                self._writer.add(part.arguments, [])
        elif isinstance(part, CallArguments):
            self._writer.add(part.arguments, [])
        elif part.text:
            kind = _REASONING if isinstance(part, Reasoning) else _REFUSAL
            if self._kind is not kind:
                self._open(kind)
            self._writer.add(part.text, [])
            self._scores.clear()

    def _take_text(self, text: str) -> None:
        if not text:
            return
        if self._kind is not _TEXT:
            text = self._space + text
            if text.isspace():
                self._space = text
                return
            self._open(_TEXT)
        self._say(text)

    def _say(self, text: str) -> None:
        scores, self._scores = self._scores, []
        self._writer.add(text, scores)

    def _open(self, kind: Kind, call: CallBegins | None = None) -> None:
        if self._kind is not None:
            self._writer.close(is_whole=True)
        if kind is not _TEXT:
            self._scores.clear()
        self._space = ""
        self._kind = kind
        self._has_answer |= kind is not _REASONING
        self._writer.open(kind, call)

    def _count(self, parts: list[Part]) -> None:
        """Count a token of reasoning; what shows nothing belongs to what is open, or to what comes."""
        if not parts:
            if self._kind is _REASONING:
                self._num_reasoning += 1
            elif self._kind is None:
                self._num_unclaimed += 1
            return
        if isinstance(parts[0], Reasoning):
            self._num_reasoning += self._num_unclaimed + 1
        self._num_unclaimed = 0

    def _finish(self, finish_reason: str, stop_reason: int | str | None) -> None:
        self._finish_reason, self._stop_reason = finish_reason, stop_reason
        # who asks for an answer looks at its first text, even of none
        if not self._has_answer and (self._space or finish_reason != "length" or self._kind is None):
            space = self._space
            self._open(_TEXT)
            self._say(space)
        elif self._kind is _TEXT and self._scores:
            self._say("")  # the end itself has a score
        if self._kind is not None:
            self._writer.close(is_whole=finish_reason != "length")
            self._kind = None
