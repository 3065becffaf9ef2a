"""Ask a route of this router from within: the code of an HTTP request without a connection, a key, or a copy of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.types import ASGIApp, Message

from baton.logs import get_logger
from baton.router.auth import TENANT
from baton.router.http_request import PRIORITY
from baton.router.openai.refusals import failure_object

_log = get_logger("inside")


@dataclass(frozen=True, slots=True)
class InnerAnswer:
    """What a route answered."""

    status: int
    body: bytes
    retry_after_s: float


async def ask(api: ASGIApp, path: str, body: bytes, *, tenant: bytes, request_id: str, priority: int) -> InnerAnswer:
    """Send a body to a route and return its answer; to cancel the call is to leave, as a client does."""
    arrived: asyncio.Queue[Message] = asyncio.Queue()
    arrived.put_nowait({"type": "http.request", "body": body, "more_body": False})
    start: Message = {}
    parts: list[bytes] = []

    async def send(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start":
            start = message
        else:
            parts.append(message.get("body", b""))

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
        "state": {"request_id": request_id},
        "baton.send": send,
        TENANT: tenant,
        PRIORITY: priority,
    }
    try:
        await api(scope, arrived.get, send)
    except Exception:  # the edge: the framework raises it again after its answer
        _log.exception("request_failed", request_id=request_id, path=path)
        if not start:
            return InnerAnswer(500, orjson.dumps(failure_object(request_id)), 0.0)
    given = dict(start["headers"]).get(b"retry-after", b"0")
    return InnerAnswer(start["status"], b"".join(parts), float(given))
