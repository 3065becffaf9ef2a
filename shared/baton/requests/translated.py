"""Requests of other APIs that come to a chat: what they build on, and what they give beside it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import msgspec
import orjson
from pydantic import ValidationError

from baton.errors import InvalidRequest
from baton.requests.chat import ChatRequest
from baton.requests.closed import Closed
from baton.requests.refusals import refuse_validation


class Context(msgspec.Struct):
    """What a request builds on that is not in its body."""

    response_id: str = ""
    before: bytes = b"[]"
    """The items of the conversation so far, as JSON."""
    referred: dict[str, bytes] = {}
    """Items that the input names, as JSON."""

    @property
    def nbytes(self) -> int:
        """How much there is to read."""
        return len(self.before) + sum(map(len, self.referred.values()))


class Translates(Closed):
    """A request that is answered by a chat."""

    chat_names: ClassVar[Mapping[str, str]] = {}
    """Fields of a chat, and what they are called here."""

    def translate(self, context: Context) -> tuple[ChatRequest, bytes]:
        """Return the chat, and what its route needs beside it, as msgpack.

        Raises:
            InvalidRequest: it asks for what is not served.
        """
        raise NotImplementedError

    def as_chat(self, fields: Mapping[str, Any]) -> ChatRequest:
        """Return a chat of these fields; None is left out.

        Raises:
            InvalidRequest: as the body of a chat would be refused.
        """
        given = {name: value for name, value in fields.items() if value is not None}
        with fields_named(self.chat_names):
            try:
                return ChatRequest.model_validate(given)
            except ValidationError as error:
                raise refuse_validation(error) from None


def dumps(value: Any) -> bytes:
    """Write JSON; numbers beyond 64 bits too, of which a tool's schema may have some."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return msgspec.json.encode(value)


@contextlib.contextmanager
def fields_named(names: Mapping[str, str]) -> Iterator[None]:
    """Say what is refused within by other names of its fields: each of a chat, and what it is called here."""
    try:
        yield
    except InvalidRequest as error:
        field = None if error.field is None else _renamed(error.field, names)
        raise type(error)(_renamed(str(error), names), field=field, code=error.code) from None


def _renamed(text: str, names: Mapping[str, str]) -> str:
    words = "|".join(map(re.escape, names))
    return re.sub(rf"(?<![\w.])({words})(?![\w-])(\[\d+\][\w.\[\]]*)?", lambda match: names[match[1]], text)
