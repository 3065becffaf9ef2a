"""JSON as an answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Send

Headers = Iterable[tuple[bytes, bytes]]


class JSON(Response):
    """A JSON body."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


async def send_json(send: Send, status: int, content: Any, *, before: Headers = (), after: Headers = ()) -> None:
    """Answer where there is no framework, with more headers before and after those of the body."""
    body = orjson.dumps(content)
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*before, *own, *after]})
    await send({"type": "http.response.body", "body": body, "more_body": False})
