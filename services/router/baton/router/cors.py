"""Cross-origin requests, as browsers ask for them. Events of a stream go by without it."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from baton.router.http_config import HttpConfig
from baton.router.json_answers import JSON
from baton.router.openai.refusals import error_object

_EXPOSED = ("x-request-id", "x-baton-route", "retry-after")


class CrossOrigin(CORSMiddleware):
    """Starlette's middleware, whose refusals are error objects, and which costs nothing where no browser asks."""

    def __init__(self, app: Any, config: HttpConfig) -> None:
        super().__init__(
            app,
            allow_origins=config.allowed_origins or ("*",),
            allow_methods=config.allowed_methods,
            allow_headers=config.allowed_headers,
            allow_credentials=config.allow_credentials,
            # who lets everybody in has not thought of pages from outside that reach into the network
            allow_private_network=bool(config.allowed_origins) and "*" not in config.allowed_origins,
            expose_headers=_EXPOSED,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and any(name == b"origin" for name, _ in scope["headers"]):
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        message = (
            f"{bytes(answer.body).decode()}: {request_headers['origin'][:80]} may not ask this. "
            "Name it in --allowed-origins, and what it sends in --allowed-methods and --allowed-headers."
        )
        kept = {name: value for name, value in answer.headers.items() if name not in ("content-type", "content-length")}
        return JSON(error_object(message, 400), status_code=400, headers=kept)
