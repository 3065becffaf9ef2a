"""What those who run a deployment ask of it, with a key of their own: caches, sleep, requests of others, settings.

Names, parameters and answers are vLLM's. A command goes to all live workers, over the connections of requests, and is answered
when it is done. That a worker sleeps is in its load, so every router knows it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from baton.config_secrets import SECRETS
from baton.errors import BatonError, InvalidRequest, refuse, unsupported
from baton.logs import get_logger
from baton.router.http_request import receive_body
from baton.router.json_answers import JSON
from baton.router.openapi_file import errors
from baton.router.operations import baton_version
from baton.router.router_state import RouterState

_FLAGS = {"true": True, "1": True, "false": False, "0": False}
_log = get_logger("admin")


class Aborted(BatonError):
    """An admin has ended a request. No server's error, which clients would send again by themselves."""

    status = 499

    def __init__(self) -> None:
        super().__init__("An admin of this server has ended the request.")


def admin_routes(router: RouterState) -> APIRouter:
    """Serve what needs the admin key."""
    routes = APIRouter()
    _cache_routes(routes, router)
    _sleep_routes(routes, router)

    @routes.post("/abort_requests", summary="End open requests of this router, or all", responses=errors(400, 403))
    async def abort_requests(http: Request) -> Response:
        public_ids = _request_ids(await receive_body(http, router.config))
        count = router.dispatcher.end_open(Aborted(), public_ids)
        _log.info("aborted", count=count)
        return JSON({"status": "aborted", "aborted": count})

    @routes.get("/server_info", summary="Show settings, without secrets, and the system", responses=errors(400, 403))
    async def server_info(http: Request) -> Response:
        form = http.query_params.get("config_format", "text")
        if form not in ("text", "json"):
            raise refuse("config_format", form, "it must be text or json")
        config = _settings(router)
        return JSON(
            {
                "vllm_config": config if form == "json" else str(config),
                "vllm_env": _environment(),
                "system_env": {
                    "baton_version": baton_version(),
                    "python_version": platform.python_version(),
                    "os": platform.platform(),
                    "cpu_count": os.cpu_count(),
                },
            }
        )

    return routes


def _cache_routes(routes: APIRouter, router: RouterState) -> None:
    @routes.post(
        "/reset_prefix_cache", summary="Have all workers forget cached prefixes", responses=errors(400, 403, 503)
    )
    async def reset_prefix_cache(http: Request) -> Response:
        _flag(http, "reset_running_requests")  # they go on with what they have, which nobody else finds any more
        external = _flag(http, "reset_external")
        workers = await router.dispatcher.commands.give("reset_prefix_cache", external=external)
        _log.info("prefix_cache_reset", workers=",".join(workers), external=external)
        return JSON({"success": True})


def _sleep_routes(routes: APIRouter, router: RouterState) -> None:
    @routes.post("/sleep", summary="Take no requests, and give back memory", responses=errors(400, 403, 503))
    async def sleep(http: Request) -> Response:
        level = _level(http.query_params.get("level", "1"))
        mode = http.query_params.get("mode", "wait")
        if mode not in ("wait", "abort"):
            raise refuse("mode", mode, "it must be wait or abort", "wait ends what runs, abort breaks it off.")
        if mode == "abort":
            router.dispatcher.end_open(Aborted())
        commands, longest_s = router.dispatcher.commands, router.config.request_timeout_s
        try:
            workers = await commands.give("sleep", level=level, timeout_s=longest_s)
        except BatonError:  # one refused, was lost or silent: no half of a deployment sleeps
            with contextlib.suppress(BatonError):
                await commands.give("wake_up")
            raise
        _log.info("asleep", level=level, workers=",".join(workers))
        return JSON({"status": "sleeping", "level": level})

    @routes.post("/wake_up", summary="Take requests again", responses=errors(400, 403, 503))
    async def wake_up(http: Request) -> Response:
        tags = http.query_params.getlist("tags")
        for tag in tags:
            if tag not in ("weights", "kv_cache"):
                raise refuse("tags", tag, "it must be weights or kv_cache")
        if tags == ["weights"]:  # which never left: the KV is still away
            return JSON({"status": "sleeping" if router.pool.is_asleep else "awake", "tags": tags})
        workers = await router.dispatcher.commands.give("wake_up")
        _log.info("awake", workers=",".join(workers))
        return JSON({"status": "awake", "tags": tags or None})

    @routes.get("/is_sleeping", summary="Whether no request is taken until /wake_up", responses=errors(403))
    async def is_sleeping() -> Response:
        return JSON({"is_sleeping": router.pool.is_asleep})


def _level(text: str) -> int:
    if text not in ("0", "1", "2"):
        raise refuse("level", text, "it must be 0, 1 or 2")
    if text == "2":
        raise unsupported(
            "level", 2, "weights are not dropped", "Use level=1, which gives back the memory of KV, or end the workers."
        )
    return int(text)


def _flag(http: Request, name: str) -> bool:
    text = http.query_params.get(name, "false")
    if text.lower() not in _FLAGS:
        raise refuse(name, text, "it must be true or false")
    return _FLAGS[text.lower()]


def _request_ids(body: bytes) -> frozenset[str] | None:
    """Read whose requests to end, by the x-request-id that each was answered with; None: no list was given, so all."""
    try:
        content = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    named = content.get("request_ids") if isinstance(content, dict) else content
    if named is None:
        return None
    if not isinstance(named, list) or not all(isinstance(each, str) for each in named):
        raise refuse("request_ids", named, "it must be a list of x-request-ids", "Leave it out to end all requests.")
    return frozenset(named)


def _settings(router: RouterState) -> dict[str, Any]:
    """Return the router's settings, and what workers announced of theirs."""
    settings = {
        name: value for name, value in dataclasses.asdict(router.config).items() if name not in (*SECRETS, "redis_url")
    }
    workers = {
        worker.worker_id: {
            "legs": worker.info.legs,
            "max_model_len": worker.info.model.max_model_len,
            "block_size": worker.info.model.block_size,
            "num_blocks": worker.load.kv_total_blocks,
            "max_num_seqs": worker.info.num_places,
        }
        for worker in router.pool.workers.values()
    }
    return {**settings, "workers": workers}


def _environment() -> dict[str, str]:
    """Return Baton's variables but those that hold secrets, or URLs, which may."""
    hidden = ("KEY", "PASSWORD", "SECRET", "TOKEN", "URL")
    names = sorted(name for name in os.environ if name.startswith("BATON_"))
    return {name: os.environ[name] for name in names if not any(word in name for word in hidden)}
