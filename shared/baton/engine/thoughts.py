"""Thoughts: where one sequence stands in its thinking, and which tokens end that; a function of the answer's tokens.

Marks are found in bytes, so it does not matter of which tokens the model makes them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np

from baton.errors import UnsupportedFeature
from baton.text import Tokenizer
from baton.thinking import Thinking

Place = Literal["before", "inside", "behind"]


class Marks:
    """The marks of thoughts, as one model's tokens and bytes."""

    def __init__(self, thinking: Thinking, text: Tokenizer, vocab_size: int) -> None:
        """Takes half a second for 128k tokens.

        Raises:
            UnsupportedFeature: the tokenizer cannot write what closes thoughts.
        """
        self._text = text
        self.opens = [text.encode(mark, add_special_tokens=False) for mark in thinking.opens]
        self.closing = text.encode(thinking.closes[0], add_special_tokens=False)
        self.open_bytes = tuple(mark.encode() for mark in thinking.opens)
        self.close_bytes = tuple(mark.encode() for mark in thinking.closes)
        ids = [text.token_id(mark) for mark in thinking.ends_before]
        self.ends_before = [token_id for token_id in ids if token_id is not None]
        if self.close_bytes[0] not in b"".join(map(self.bytes_of, self.closing)):
            raise UnsupportedFeature(
                f"thinking_token_budget is not served with this model: its tokenizer cannot write "
                f"{thinking.closes[0]!r}. Leave it out.",
                field="thinking_token_budget",
            )
        self._overruns = self._find_overruns(vocab_size)

    def bytes_of(self, token_id: int) -> bytes:
        """Return what a token adds to a text, special tokens included."""
        return self._text.token_bytes(token_id, skip_special_tokens=False)

    def close_in(self, text: bytes) -> bool:
        """Whether thoughts are closed in a text."""
        return any(mark in text for mark in self.close_bytes)

    def overruns(self, text: bytes) -> list[int]:
        """Return the tokens that behind `text` would close thoughts and go on with more than white space."""
        return [
            token_id
            for (mark, begun), token_ids in self._overruns.items()
            if text.endswith(mark[:begun])
            for token_id in token_ids
        ]

    def _find_overruns(self, vocab_size: int) -> dict[tuple[bytes, int], list[int]]:
        """Find them, by the mark and how many of its bytes stand before the token."""
        found: defaultdict[tuple[bytes, int], list[int]] = defaultdict(list)
        for token_id in range(min(vocab_size, self._text.vocab_size)):
            piece = self.bytes_of(token_id)
            for mark in self.close_bytes:
                if mark[-1:] not in piece[:-1]:
                    continue
                for begun in range(len(mark)):
                    rest = mark[begun:]
                    at = piece.find(rest) if begun == 0 else 0 if piece.startswith(rest) else -1
                    if at >= 0 and piece[at + len(rest) :].strip():
                        found[mark, begun].append(token_id)
        return dict(found)


class Thoughts:
    """The thinking of one answer."""

    def __init__(self, thinking: Thinking, marks: Marks) -> None:
        self.marks = marks
        self.place: Place = "inside" if thinking.is_open else "before"
        self._budget = thinking.budget
        self._num_inside = 0
        """Tokens since the thoughts were opened."""
        self._seen = b""
        """Of the answer, as far as a mark may still be made of it."""

    def take(self, token_id: int) -> None:
        """Go on by one token."""
        if self.place == "behind":
            return
        if token_id in self.marks.ends_before:
            self.place = "behind"
            return
        self._seen += self.marks.bytes_of(token_id)
        if self.place == "before":
            self._begin()
            return
        self._num_inside += 1
        if self.marks.close_in(self._seen):
            self.place = "behind"
        self._seen = self._seen[-max(map(len, self.marks.close_bytes)) :]

    def _begin(self) -> None:
        begun = self._seen.lstrip()
        if begun.startswith(self.marks.open_bytes):
            self.place, self._seen = "inside", b""
        elif not any(mark.startswith(begun) for mark in self.marks.open_bytes):
            self.place = "behind"

    def is_free(self, num_more: int) -> bool:
        """Whether the budget lasts for so many more tokens, whatever they are."""
        return self.place == "behind" or self._budget is None or self._num_inside + num_more <= self._budget

    def forced(self, answer: Sequence[int]) -> int | None:
        """Return the token that must come next, as the budget is spent; None: there is no such."""
        if self.place != "inside" or self.is_free(1):
            return None
        closing = self.marks.closing
        begun = next(n for n in range(len(closing) - 1, -1, -1) if list(answer[len(answer) - n :]) == closing[:n])
        return closing[begun]

    def opening(self, answer: Sequence[int]) -> list[int]:
        """Return the tokens with which thoughts may be opened, or go on to be."""
        begun = len(answer)
        return [mark[begun] for mark in self.marks.opens if begun < len(mark) and mark[:begun] == list(answer)]

    @property
    def overruns(self) -> list[int]:
        """Tokens that would close thoughts and begin what follows at once."""
        return self.marks.overruns(self._seen)


def allow(row: np.ndarray, token_ids: Sequence[int]) -> None:
    """Set tokens' bits in a row of a mask."""
    for token_id in token_ids:
        row.view(np.uint32)[token_id // 32] |= np.uint32(1 << token_id % 32)


def clear(row: np.ndarray, token_ids: Sequence[int]) -> None:
    """Take tokens' bits out of a row of a mask."""
    for token_id in token_ids:
        row.view(np.uint32)[token_id // 32] &= np.uint32(0xFFFFFFFF ^ (1 << token_id % 32))
