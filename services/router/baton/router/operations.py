"""What operators, their tools and the page ask: how the router and its workers are, and where requests went and why."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import time
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from baton.errors import InvalidRequest
from baton.messages import Load
from baton.metrics import CONTENT_TYPE
from baton.registry import WorkerRecord
from baton.router.journal import CAPACITY
from baton.router.json_answers import JSON
from baton.router.openai.refusals import error_object
from baton.router.openapi_file import errors, openapi_document
from baton.router.pool import Worker
from baton.router.router_state import RouterState
from baton.step_pace import StepPace


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
            reason = "all workers sleep" if router.pool.is_asleep else "no decode worker is alive"
            if router.discovery.is_cut_off:
                reason += ", and Redis, which names workers, does not answer"
            return JSON(error_object(f"The router is not ready: {reason}.", 503), status_code=503)
        return JSON({"status": "ready", "workers": workers})

    return routes


def monitoring_routes(router: RouterState) -> APIRouter:
    """Serve what needs a key."""
    routes = APIRouter()

    @routes.get("/version", summary="Name the version that runs")
    async def version() -> Response:
        return JSON({"version": baton_version()})

    @routes.get("/openapi.json", include_in_schema=False)
    async def openapi(http: Request) -> Response:
        return JSON(openapi_document(http.app))

    @routes.get("/metrics", summary="Every series, for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        router.dispatcher.count()
        router.metrics.streams_open.set(len(router.streams.served))
        router.metrics.event_loop_tasks.set(len(asyncio.all_tasks()))
        return Response(router.metrics.render(), headers={"content-type": CONTENT_TYPE})

    @routes.get("/debug/route", summary="Explain where a request went", responses=errors(400, 404))
    async def debug_route(http: Request) -> Response:
        public_id = http.query_params.get("id")
        if not public_id:
            raise InvalidRequest("id is missing. Give the request's x-request-id.", field="id")
        attempts = router.dispatcher.journal.routes(public_id, http.state.tenant)
        if not attempts:
            error = error_object("No such request is remembered here.", 404, param="id", code="not_found")
            return JSON(error, status_code=404)
        routes = [
            {"at": each.at, "epoch": each.epoch, "chosen": each.decision.chosen, "considered": each.decision.considered}
            for each in attempts
        ]
        return JSON({"id": public_id, "routes": routes})

    @routes.get("/debug/workers", summary="Show the workers as the router sees them")
    async def debug_workers() -> Response:
        pool, awaited = router.pool, router.dispatcher.num_awaited
        return JSON(
            {
                "now": time.time(),
                "workers": [_worker(worker, awaited(worker)) for worker in pool.workers.values()],
                "stores": [_store(store) for store in router.discovery.stores.values()],
                "lost": [dataclasses.asdict(lost) for lost in pool.lost],
                "transfers": [
                    {"prefill": prefill, "decode": decode, **dataclasses.asdict(sent)}
                    for (prefill, decode), sent in pool.transfers.items()
                    if sent.count
                ],
            }
        )

    @routes.get("/debug/requests", summary="Show when the last requests did what", responses=errors(400))
    async def debug_requests(http: Request) -> Response:
        text = http.query_params.get("limit", str(CAPACITY))
        if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= CAPACITY):
            raise InvalidRequest(
                f"limit={text[:40]!r} is not valid: it must be a number from 1 to {CAPACITY}.", field="limit"
            )
        records = router.dispatcher.journal.newest(int(text), http.state.tenant)
        return JSON({"now": time.time(), "requests": [record.describe() for record in records]})

    @routes.get("/debug/history", summary="Show rates, percentiles and failures of the last 15 minutes")
    async def debug_history() -> Response:
        return JSON(router.history.describe())

    return routes


def baton_version() -> str:
    try:
        return importlib.metadata.version("batonllm")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


def _worker(worker: Worker, num_awaited: int) -> dict[str, Any]:
    """Say what a worker last told of itself, how many of our requests have a leg there, and how many wait for it."""
    info, load = worker.info, worker.load
    return {
        "id": info.worker_id,
        "legs": info.legs,
        "state": "draining" if load.draining else "asleep" if load.asleep else "live",
        "kv_usage": _usage(load),
        "store": worker.store or None,
        "running": load.num_running,
        "waiting": load.num_waiting,
        "waiting_tokens": load.waiting_tokens,
        "in_flight": len(worker.request_ids),
        "awaited": num_awaited,
        "prefill_rate": load.prefill_rate,
        "decode_step_ms": load.decode_step_ms,
        "pace": None if worker.step_pace is None else _pace(worker.step_pace),
        "kv_form": info.model.cache_parts[1] if len(info.model.cache_parts) > 1 else None,
        "http": info.http,
        "control": info.control,
        "incarnation": info.incarnation,
        "since": worker.since,
    }


def _store(store: WorkerRecord) -> dict[str, Any]:
    """Say what the store of a host announces."""
    info = store.info
    return {"id": info.worker_id, "kv_usage": _usage(store.load), "http": info.http, "incarnation": info.incarnation}


def _usage(load: Load) -> float:
    """The share of blocks that are in use."""
    used = load.kv_total_blocks - load.kv_free_blocks
    return used / load.kv_total_blocks if load.kv_total_blocks else 0.0


def _pace(pace: StepPace) -> dict[str, Any]:
    """Say what a worker has learned of its steps, in seconds, and what gap it keeps to."""
    return {**msgspec.structs.asdict(pace), "times": msgspec.structs.asdict(pace.times)}
