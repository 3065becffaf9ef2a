"""What operators and their tools ask: whether it lives, whether it works, its series, its version."""

from __future__ import annotations

import importlib.metadata

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from baton.metrics import CONTENT_TYPE
from baton.router.json_response import JSON
from baton.router.openai.refusals import error_object
from baton.router.openapi_file import errors
from baton.router.router_state import RouterState


def health_routes(router: RouterState) -> APIRouter:
    """Serve what needs no key."""
    routes = APIRouter()

    @routes.get("/health", summary="Whether the event loop is alive")
    async def health() -> Response:
        return JSON({"status": "ok"})

    @routes.get("/ready", summary="Whether requests would be served now", responses=errors(503))
    async def ready() -> Response:
        workers = {"prefill": 0, "decode": 0}
        for worker in router.pool.workers.values():
            workers["prefill"] += worker.can_prefill
            workers["decode"] += worker.can_decode
        if not workers["decode"]:
            reason = "no decode worker is alive"
            if router.discovery.is_cut_off:
                reason += ", and Redis, which names workers, does not answer"
            return JSON(error_object(f"The router is not ready: {reason}.", 503), status_code=503)
        return JSON({"status": "ready", "workers": workers})

    return routes


def monitoring_routes(router: RouterState) -> APIRouter:
    """Serve metrics and the version."""
    routes = APIRouter()

    @routes.get("/version", summary="Name the version that runs")
    async def version() -> Response:
        return JSON({"version": baton_version()})

    @routes.get("/metrics", summary="Every series, for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        router.dispatcher.count()
        router.metrics.streams_open.set(len(router.streams))
        return Response(router.metrics.render(), headers={"content-type": CONTENT_TYPE})

    return routes


def baton_version() -> str:
    """Name the version that runs."""
    try:
        return importlib.metadata.version("batonllm")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"
