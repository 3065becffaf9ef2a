"""Routes that other servers' probes, balancers and hosts ask: /ping, /load, /invocations, and /docs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from html import escape
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from baton.errors import InvalidRequest
from baton.router.http_request import receive_body
from baton.router.json_answers import JSON
from baton.router.openapi_file import errors, openapi_document
from baton.router.page.routes import CSP
from baton.router.router_state import RouterState

Endpoint = Callable[[Request], Awaitable[Response]]
_BY_FIELD = {"messages": "/v1/chat/completions", "prompt": "/v1/completions", "input": "/v1/embeddings"}
"""Which field of a body says which route is meant; the first that is there counts."""
_NULL = msgspec.Raw(b"null")


class _Kind(msgspec.Struct):
    """Which of those fields a body has: what they hold is passed over, which takes a long one a few milliseconds."""

    messages: msgspec.Raw = _NULL
    prompt: msgspec.Raw = _NULL
    input: msgspec.Raw = _NULL


def ping_routes() -> APIRouter:
    """Serve what needs no key."""
    routes = APIRouter()

    @routes.get("/ping", summary="The same as /health, for hosts that ask so")
    @routes.post("/ping", include_in_schema=False)
    async def ping() -> Response:
        return JSON({"status": "ok"})

    return routes


def small_routes(router: RouterState, made: Iterable[APIRouter]) -> APIRouter:
    """Serve what needs a key; `made` are the routes that /invocations passes a body on to."""
    routes = APIRouter()
    endpoints: Mapping[str, Endpoint] = {
        getattr(route, "path", ""): getattr(route, "endpoint", _nowhere) for each in made for route in each.routes
    }

    @routes.get("/load", summary="How many requests are open")
    async def load() -> Response:
        return JSON({"server_load": len(router.dispatcher.flows)})

    @routes.post(
        "/invocations",
        summary="Chat, completions or embeddings, by the body",
        responses=errors(400, 408, 413, 429, 503),
    )
    async def invocations(http: Request) -> Response:
        body = await receive_body(http, router.config)
        try:
            kind = msgspec.json.decode(body, type=_Kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None
        for field, path in _BY_FIELD.items():
            if bytes(getattr(kind, field)) != b"null":
                http._body = body  # which the route reads as if it had just come
                return await endpoints[path](http)
        named = ", ".join(f"{field} ({path})" for field, path in _BY_FIELD.items())
        raise InvalidRequest(f"The body is of no known kind: it must have one of {named}.", field="messages")

    @routes.get("/docs", summary="Every route, to be read", include_in_schema=False)
    async def docs(http: Request) -> Response:
        return HTMLResponse(_page(openapi_document(http.app)), headers={"content-security-policy": CSP})

    return routes


async def _nowhere(_http: Request) -> Response:
    raise AssertionError("a route without an endpoint")


def _page(document: Mapping[str, Any]) -> str:
    """Write the OpenAPI file's routes as a page that loads nothing."""
    rows = []
    for path, operations in sorted(document["paths"].items()):
        for method, operation in operations.items():
            key = "" if operation.get("security") else "no key"
            cells = (method.upper(), path, operation.get("summary", ""), key)
            rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><h1>{title}</h1>'
        '<p>Bodies, answers and errors: <a href="openapi.json">openapi.json</a></p>'
        f"<table>{''.join(rows)}</table></html>"
    )
