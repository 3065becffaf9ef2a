"""/v1/batches: create, list, look at, cancel. A batch is its key's own."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from baton.errors import QueueFull, refuse
from baton.requests.batches import BatchRequest
from baton.router.batches.batches import Batches
from baton.router.batches.pages import page_of, read_query
from baton.router.http_request import read_body
from baton.router.json_answers import JSON
from baton.router.openapi_file import errors, operation
from baton.router.router_state import RouterState

_MAX_OPEN = 256
"""Batches of one key that have not ended."""


def batch_routes(router: RouterState, batches: Batches, endpoints: frozenset[str]) -> APIRouter:
    """`endpoints` are those of this router whose requests a batch may hold."""
    routes = APIRouter()

    @routes.post("/v1/batches", summary="Answer the lines of a file", **operation(BatchRequest))
    async def create(http: Request) -> Response:
        own, files = batches.of(http.state.tenant), batches.files(http.state.tenant)
        request = await read_body(http, BatchRequest, router)
        if request.endpoint not in endpoints:
            raise refuse("endpoint", request.endpoint, f"served are {', '.join(sorted(endpoints))}")

        def add() -> dict[str, Any]:
            stored = files.get(request.input_file_id, field="input_file_id")
            if stored.purpose != "batch":
                raise refuse("input_file_id", stored.id, f"its purpose is {stored.purpose}, and must be batch")
            if len(own.open()) >= _MAX_OPEN:
                raise QueueFull(f"{_MAX_OPEN} batches of this key have not ended. Wait for one, or cancel one.")
            return own.add(request.endpoint, stored.id, request.metadata).shown()

        shown = await asyncio.to_thread(add)
        batches.look()
        return JSON(shown)

    @routes.get("/v1/batches", summary="List batches", responses=errors(400))
    async def list_batches(http: Request) -> Response:
        own, query = batches.of(http.state.tenant), read_query(http, ("limit", "after"))

        def page() -> dict[str, Any]:
            return page_of(own.newest_first(), query, lambda each: own.get(each).shown(), most=100, usual=20)

        return JSON(await asyncio.to_thread(page))

    @routes.get("/v1/batches/{batch_id}", summary="Describe a batch", responses=errors(400, 404))
    async def describe(http: Request, batch_id: str) -> Response:
        return JSON(await asyncio.to_thread(lambda: batches.of(http.state.tenant).get(batch_id).shown()))

    @routes.post("/v1/batches/{batch_id}/cancel", summary="Cancel a batch", responses=errors(400, 404, 409))
    async def cancel(http: Request, batch_id: str) -> Response:
        own = batches.of(http.state.tenant)

        def ask() -> dict[str, Any]:
            folder = own.get(batch_id)
            if folder.load().is_open:
                folder.ask_to_cancel()
            return folder.shown()

        shown = await asyncio.to_thread(ask)
        batches.look()
        return JSON(shown)

    return routes
