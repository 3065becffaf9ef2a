"""What the page and a puzzled operator ask: where requests went and why, when they did what, how workers stand."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from baton.errors import InvalidRequest
from baton.router.json_response import JSON
from baton.router.openai.refusals import error_object
from baton.router.openapi_file import errors
from baton.router.policy import Option
from baton.router.pool import Worker
from baton.router.router_state import RouterState
from baton.router.timeline import CAPACITY


def debug_routes(router: RouterState) -> APIRouter:
    """Serve /debug."""
    routes = APIRouter()

    @routes.get("/debug/route", summary="Explain where a request went", responses=errors(400, 404))
    async def debug_route(http: Request) -> Response:
        public_id = http.query_params.get("id")
        if not public_id:
            raise InvalidRequest("id is missing. Give the request's x-request-id.", field="id")
        traces = router.dispatcher.traces(public_id)
        if not traces:
            error = error_object("No such request is remembered here.", 404, param="id", code="not_found")
            return JSON(error, status_code=404)
        return JSON({"id": public_id, "routes": [_trace(trace) for trace in traces]})

    @routes.get("/debug/workers", summary="Show the workers as the router sees them")
    async def debug_workers() -> Response:
        return JSON({"workers": [_worker(worker) for worker in router.pool.workers.values()]})

    @routes.get("/debug/requests", summary="Show when the last requests did what", responses=errors(400))
    async def debug_requests(http: Request) -> Response:
        text = http.query_params.get("limit", str(CAPACITY))
        if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= CAPACITY):
            raise InvalidRequest(
                f"limit={text[:40]!r} is not valid: it must be a number from 1 to {CAPACITY}.", field="limit"
            )
        return JSON({"now": time.time(), "requests": router.dispatcher.last_requests(int(text))})

    return routes


def _trace(trace: Any) -> dict[str, Any]:
    decision = trace.decision
    considered = [_option(option) for option in decision.considered]
    return {"at": trace.at, "epoch": trace.epoch, "chosen": _option(decision.chosen), "considered": considered}


def _option(option: Option) -> dict[str, Any]:
    return {
        "path": option.path,
        "decode": option.decode,
        "prefill": option.prefill,
        "cost_ms": option.cost_ms,
        "terms": dict(option.terms),
    }


def _worker(worker: Worker) -> dict[str, Any]:
    """Say what a worker last told of itself, how many of our requests have a leg there, and how many wait for it."""
    info, load = worker.info, worker.load
    used = load.kv_total_blocks - load.kv_free_blocks
    return {
        "id": info.worker_id,
        "legs": info.legs,
        "state": "draining" if load.draining else "live",
        "kv_usage": used / load.kv_total_blocks if load.kv_total_blocks else 0.0,
        "running": load.num_running,
        "waiting": load.num_waiting,
        "waiting_tokens": load.waiting_tokens,
        "in_flight": len(worker.flows),
        "awaited": sum(flow.waits_for(worker) for flow in worker.flows),
        "prefill_rate": load.prefill_rate,
        "decode_step_ms": load.decode_step_ms,
        "http": info.http,
        "control": info.control,
        "incarnation": info.incarnation,
    }
