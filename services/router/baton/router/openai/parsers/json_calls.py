"""Calls that a model writes as JSON: `{"name": ..., "arguments": {...}}`, alone, in a list or one behind another."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

_SIGNS = re.compile(r'[{}\[\]"\\]')
_BETWEEN = re.compile(r"[\s,;]*")
_NULL = msgspec.Raw(b"null")


class _Function(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = _NULL
    parameters: msgspec.Raw = _NULL


class _Call(msgspec.Struct):
    """What a model writes. Some families say parameters for arguments, and some put both into a function."""

    name: str | None = None
    arguments: msgspec.Raw = _NULL
    parameters: msgspec.Raw = _NULL
    function: msgspec.Raw = _NULL

    def read(self) -> tuple[str, str]:
        """Return name and arguments, these as written: reading and writing them again would change 1.10 and long numbers.

        Raises:
            msgspec.DecodeError: it has no name.
        """
        call: _Call | _Function = self
        if self.name is None:
            call = msgspec.json.decode(self.function, type=_Function)
        if call.name is None:
            raise msgspec.DecodeError("the call has no name")
        raw = bytes(call.arguments if call.arguments != _NULL else call.parameters)
        if raw == b"null":
            return call.name, "{}"
        return call.name, msgspec.json.decode(raw, type=str) if raw.startswith(b'"') else raw.decode()


_ONE = msgspec.json.Decoder(_Call)
_LIST = msgspec.json.Decoder(list[_Call])


def read_json_calls(text: str) -> list[tuple[str, str]] | None:
    """Return the calls in a text, each a name and its arguments as JSON; None if it holds anything else, or none."""
    calls: list[tuple[str, str]] = []
    text = text.strip(" \t\r\n,;")
    if text.startswith("{"):  # the beginning of a list has been read already
        text = text.removesuffix("]")
    try:
        for value in _values(text):
            written = _LIST.decode(value) if value.startswith("[") else [_ONE.decode(value)]
            calls += [call.read() for call in written]
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    return calls or None


def _values(text: str) -> Iterator[str]:
    """Give the JSON values that stand one behind another, with white space, commas or semicolons between."""
    at = _end_of(_BETWEEN, text, 0)
    while at < len(text):
        end = JsonEnd().push(text, at) if text[at] in "{[" else None
        yield text[at:end]  # without an end it is no value
        at = len(text) if end is None else _end_of(_BETWEEN, text, end)


def _end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()


def is_json(text: str) -> bool:
    """Whether a text is one JSON value."""
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return False
    return True


_FIRST_KEY = re.compile(r'\s*(?:\[\s*)?(?:\{\s*(?:"(\w*)("?))?)?')
_KEYS = ("name", "arguments", "parameters", "function", "type", "id")


def may_be_json_calls(text: str) -> bool:
    """Whether a text can still become calls, by its first key."""
    found = _FIRST_KEY.match(text)
    if found is None or (found.end() < len(text) and not found[2]):
        return False
    key = found[1] or ""
    return key in _KEYS if found[2] else any(known.startswith(key) for known in _KEYS)


class JsonEnd:
    """Where an object or a list ends, in a text that comes in pieces: by its brackets, outside of strings."""

    def __init__(self, depth: int = 0) -> None:
        """Begin before a value, or inside of so many."""
        self._depth = depth
        self._in_string = False
        self._is_escaped = False
        """The next character is part of an escape."""

    def push(self, text: str, at: int = 0) -> int | None:
        """Take a piece from `at` on; return where in it the value ends, if it does."""
        skipped = at if self._is_escaped else -1
        for found in _SIGNS.finditer(text, at):
            here, sign = found.start(), found[0]
            if here == skipped:
                continue
            if self._in_string:
                if sign == "\\":
                    skipped = here + 1
                elif sign == '"':
                    self._in_string = False
            elif sign == '"':
                self._in_string = True
            elif sign in "{[":
                self._depth += 1
            elif sign in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return here + 1
        self._is_escaped = skipped == len(text)
        return None
