"""JSON whose numbers keep the characters that somebody wrote: 1.10 stays 1.10, and no number is too large."""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

_MAX_DIGITS = 4000
"""Python reads and writes whole numbers of up to 4,300 digits."""
_PLACE = secrets.token_hex(8)
"""No text holds it by chance or on purpose."""
_PLACES = re.compile(rf'"{_PLACE}:(\d+)"')


class WrittenNumber(float):
    """A number that shows itself as it was written."""

    __slots__ = ("written",)

    def __new__(cls, written: str) -> WrittenNumber:
        number = super().__new__(cls, written)
        number.written = written
        return number

    written: str

    def __repr__(self) -> str:
        return self.written

    __str__ = __repr__


def read_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError, RecursionError: it is none, or nested too deep.
    """
    return json.loads(text, parse_float=_fraction, parse_int=_whole)


def write_json(value: Any, **how: Any) -> str:
    """Write a value as `json.dumps` does, and what `read_json` gave with its numbers as they were."""
    numbers: list[str] = []
    text = json.dumps(_set_aside(value, numbers), **how)
    return _PLACES.sub(lambda place: numbers[int(place[1])], text) if numbers else text


def _fraction(written: str) -> float:
    number = float(written)
    return number if repr(number) == written else WrittenNumber(written)


def _whole(written: str) -> float:
    return int(written) if len(written) < _MAX_DIGITS and written != "-0" else WrittenNumber(written)


def _set_aside(value: Any, numbers: list[str]) -> Any:
    """Put a place in for each number that `json.dumps` would write in another way."""
    if isinstance(value, WrittenNumber):
        numbers.append(value.written)
        return f"{_PLACE}:{len(numbers) - 1}"
    if isinstance(value, dict):
        return {key: _set_aside(item, numbers) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_set_aside(item, numbers) for item in value]
    return value
