"""JSON as an answer, and one error object for whatever failed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from baton.errors import BatonError
from baton.router.auth import NotAuthorized
from baton.router.error_forms import form_of
from baton.router.openai.refusals import error_object, error_of, failure_object
from baton.vllm_names import why_no_route

Headers = Iterable[tuple[bytes, bytes]]
_PART_NBYTES = 2**18
_TURN_S = 0.002


class JSON(Response):
    """A JSON body."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


class LongJSON(Response):
    """A JSON body that is made while it is sent: for a few milliseconds, in turns with all other such bodies."""

    media_type = "application/json"

    def __init__(self, pieces: Iterator[bytes], turns: asyncio.Lock, headers: Mapping[str, str] | None = None) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(headers)
        del self.headers["content-length"]
        self._pieces = pieces
        self._turns = turns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        part, is_last = await self._next()
        if is_last:
            self.headers["content-length"] = str(len(part))
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        while not is_last:
            await send({"type": "http.response.body", "body": part, "more_body": True})
            part, is_last = await self._next()
        await send({"type": "http.response.body", "body": part, "more_body": False})

    async def _next(self) -> tuple[bytes, bool]:
        """Return a part of the body, and whether it is the last."""
        parts: list[bytes] = []
        nbytes = 0
        while nbytes < _PART_NBYTES:
            async with self._turns:
                ends_at = time.monotonic() + _TURN_S
                while nbytes < _PART_NBYTES and time.monotonic() < ends_at:
                    piece = next(self._pieces, None)
                    if piece is None:
                        return b"".join(parts), True
                    parts.append(piece)
                    nbytes += len(piece)
                await asyncio.sleep(0)  # one turn of one body, and then the loop's
        return b"".join(parts), False


async def send_json(send: Send, status: int, content: Any, *, before: Headers = (), after: Headers = ()) -> None:
    """Answer where there is no framework, with more headers before and after those of the body."""
    body = orjson.dumps(content)
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*before, *own, *after]})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def answer_errors(app: FastAPI) -> None:
    """Answer every exception of an application with an error object."""
    app.add_exception_handler(BatonError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_failure)


async def _on_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, BatonError)
    # what anybody can cause without a key is counted, not listed
    if not error.is_recorded and not isinstance(error, NotAuthorized) and _asks_for_answer(http):
        state = http.scope["state"]
        http.app.state.router.dispatcher.journal.refuse(state["request_id"], state.get("tenant", b""), error)
    headers = {}
    if error.retryable:
        headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, NotAuthorized):
        headers["www-authenticate"] = "Bearer"
    return _said(http, error_of(error), error.status, headers)


def _asks_for_answer(http: Request) -> bool:
    return http.method == "POST" and str(getattr(http.scope.get("route"), "path", "")).startswith("/v1/")


async def _on_http_error(http: Request, error: Exception) -> Response:
    """What the framework refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    path = http.scope["path"][:80]
    missing = f"There is no {path} here."
    if path in ("/chat/completions", "/completions", "/models"):
        missing += f" There is /v1{path}: end the base URL with /v1."
    elif why := why_no_route(path):
        missing += f" {why}"
    message = {404: missing, 405: f"{http.method} is not served on {path}."}.get(error.status_code, str(error.detail))
    return _said(http, error_object(message, error.status_code), error.status_code, error.headers)


async def _on_failure(http: Request, _error: Exception) -> Response:
    """A mistake of ours; the envelope logs it."""
    return _said(http, failure_object(http.scope["state"]["request_id"]), 500)


def _said(http: Request, error: dict[str, Any], status: int, headers: Mapping[str, str] | None = None) -> Response:
    return JSON(form_of(http.scope["path"]).body(error, status), status_code=status, headers=headers)
