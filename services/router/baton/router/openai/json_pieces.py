"""JSON in pieces, none of which takes more than a few milliseconds to make: what long answers are written as.

An empty piece is nothing but an occasion to let others have their turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import orjson

_T = TypeVar("_T")
ROWS = 64
"""Positions with log-probabilities that are written at once: up to 21 scores each."""
_SCORES = 21
_IDS = 16_384
Pieces = Iterable[bytes]
NULL = (b"null",)


def rows_at_once(num_scores: int) -> int:
    """Return how many positions with so many log-probabilities are written at once."""
    return max(1, min(ROWS, ROWS * _SCORES // max(num_scores, 1)))


def object_pieces(short: Mapping[str, Any], long: Mapping[str, Pieces]) -> Iterator[bytes]:
    """Write an object: its short fields, of which there are some, and then the long ones."""
    yield orjson.dumps(short)[:-1]
    for name, pieces in long.items():
        yield b',"%b":' % name.encode()
        yield from pieces
    yield b"}"


def whole(value: Any) -> Pieces:
    """Write what is short, behind what is long."""
    return (orjson.dumps(value),)


def list_pieces(
    items: Sequence[_T] | None, write: Callable[[Sequence[_T]], Sequence[Any]] = list, size: int = _IDS
) -> Iterator[bytes]:
    """Write a list, or null: so many items at once, as `write` shows them; it may leave some out."""
    if items is None:
        yield from NULL
        return
    before = b"["
    for at in range(0, len(items), size):
        if written := orjson.dumps(write(items[at : at + size]))[1:-1]:
            yield before + written
            before = b","
    yield b"]" if before == b"," else b"[]"


def joined_pieces(items: Iterable[Pieces]) -> Iterator[bytes]:
    """Write a list of what comes in pieces itself."""
    yield b"["
    for index, pieces in enumerate(items):
        if index:
            yield b","
        yield from pieces
    yield b"]"


class Once:
    """Pieces that are made once, when they are first asked for, and are then at hand."""

    def __init__(self, pieces: Pieces) -> None:
        self._coming = iter(pieces)
        self._made: list[bytes] = []

    def __iter__(self) -> Iterator[bytes]:
        yield from self._made
        for piece in self._coming:
            self._made.append(piece)
            yield piece


class Columns:
    """A table that is written column by column, of rows that come slice by slice."""

    def __init__(self) -> None:
        self._written: dict[str, list[bytes]] = {}

    def add(self, slice_of_columns: Mapping[str, Sequence[Any]]) -> None:
        """Write some rows' values; every slice has the same columns."""
        for name, values in slice_of_columns.items():
            written = self._written.setdefault(name, [])
            if values:
                written.append(orjson.dumps(values)[1:-1])

    def then(self, other: Columns) -> Iterator[bytes]:
        """Write the table, as an object of lists, with the rows of another one behind its own."""
        for index, (name, theirs) in enumerate(other._written.items()):
            yield b'%b"%b":[' % (b"," if index else b"{", name.encode())
            for at, piece in enumerate((*self._written.get(name, ()), *theirs)):
                yield b"," + piece if at else piece
            yield b"]"
        yield b"}"
