"""Envelope: what surrounds every request, as plain ASGI: its id, its head's size, the last resort for errors, a count.

HEAD is answered as GET, whose body the server leaves out; a slash at the end of a path says nothing.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from typing import Any

from starlette.types import Receive, Scope, Send

from baton.logs import get_logger
from baton.metrics import RouterMetrics
from baton.router.config import RouterConfig
from baton.router.error_forms import form_of
from baton.router.http_config import HttpConfig
from baton.router.json_answers import send_json
from baton.router.openai.refusals import error_object, failure_object
from baton.router.request_line import log_request

_log = get_logger("http")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/@+=-]{1,128}")


class Envelope:
    """The outermost application."""

    def __init__(self, app: Any, metrics: RouterMetrics, config: RouterConfig, http: HttpConfig) -> None:
        self.app = app
        self._metrics = metrics
        self._max_head = config.max_header_nbytes
        self._root_path = http.root_path
        self._logs_requests = http.enable_log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began_at = time.monotonic()
        given, nbytes = b"", 0
        for name, value in scope["headers"]:
            nbytes += len(name) + len(value)
            if name == b"x-request-id":
                given = value
        # an id is echoed and logged, so it may hold nothing that means something there
        request_id = given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        # the lifespan's state is shared by all requests; each gets a copy of its own
        scope = {
            **scope,
            "state": {**scope.get("state", {}), "request_id": request_id},
            "method": "GET" if scope["method"] == "HEAD" else scope["method"],
            "path": self._path(scope["path"]),
            "root_path": self._root_path,
            # a stream's events go by without another call on their way
            "baton.send": send,
        }
        header = (b"x-request-id", request_id.encode())
        status, form = 0, form_of(scope["path"])

        async def send_with_id(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        if nbytes > self._max_head:
            error = error_object(f"The request's head of {nbytes} bytes exceeds the limit of {self._max_head}.", 431)
            await send_json(send_with_id, 431, form.body(error, 431))
        else:
            try:
                await self.app(scope, receive, send_with_id)
            except Exception:
                _log.exception("request_failed", request_id=request_id, path=scope["path"][:200])
                if status == 0:
                    await send_json(send_with_id, 500, form.body(failure_object(request_id), 500))
            except asyncio.CancelledError:  # the server ends, and this one was not even read
                if status == 0:
                    error = error_object("The server is shutting down. Send it again.", 503)
                    await send_json(send_with_id, 503, form.body(error, 503))
        route = scope.get("route")
        self._metrics.http_requests.inc(getattr(route, "path", "none"), str(status))
        if self._logs_requests:
            log_request(scope, status, time.monotonic() - began_at)

    def _path(self, given: str) -> str:
        """Leave out a slash at the end, but for that of the page: what it loads lies beside it."""
        path = given.rstrip("/")
        return f"{path}/" if path in ("", self._root_path) else path
