"""create_app: builds a router's objects and mounts its routes. No globals; one app is one router."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.metadata
import re
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response

from baton.errors import BatonError, InvalidRequest
from baton.logs import get_logger
from baton.metrics import CONTENT_TYPE, RouterMetrics
from baton.registry import RedisRegistry, Registry
from baton.router.admission import Admission, Refused
from baton.router.auth import PUBLIC_PATHS, Authenticator, NotAuthorized, require_key
from baton.router.config import RouterConfig
from baton.router.discovery import Discovery
from baton.router.dispatcher import Dispatcher
from baton.router.envelope import Envelope
from baton.router.index import PrefixIndex
from baton.router.journal import CAPACITY
from baton.router.openai.answers import Answers, Caller, Pending
from baton.router.openai.refusals import error_object, error_of, refuse_validation
from baton.router.openai.requests import ChatRequest, CompletionRequest, DetokenizeRequest, Message, TokenizeRequest
from baton.router.page.routes import page_routes
from baton.router.pool import Worker, WorkerPool
from baton.router.sse import OpenStreams
from baton.router.text_pool import TextPool
from baton.text import Tokenizer

_log = get_logger("app")
_Model = TypeVar("_Model", bound=BaseModel)
_MAX_TIMEOUT_S = 24 * 3600.0
_TIMEOUT = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?", re.ASCII)
_BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


class JSON(Response):
    """A JSON body."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


class BodyTooLong(InvalidRequest):
    """The body exceeds the limit."""

    status = 413


class BodyTooSlow(InvalidRequest):
    """The body did not arrive in time."""

    status = 408


class RouterState:
    """A router's objects, from start to stop."""

    def __init__(self, config: RouterConfig, registry: Registry | None = None) -> None:
        """Load the tokenizer; connections begin with `start`.

        Raises:
            ConfigError: the tokenizer cannot be loaded, or the URL of Redis is none.
        """
        self.config = config
        self.metrics = RouterMetrics(config.model_names[0])
        template = None
        if config.chat_template is not None:
            with open(config.chat_template, encoding="utf-8") as file:
                template = file.read()
        self.tokenizer = Tokenizer(config.tokenizer or config.model, config.revision, template)
        if registry is None and config.redis_url is not None:
            registry = RedisRegistry(config.redis_url, config.model_names[0], config.redis_password)
        self._registry = registry
        self.is_draining = False
        self.started_at = int(time.time())

    async def start(self) -> None:
        """Begin to talk to workers and Redis."""
        config = self.config
        self.index = PrefixIndex()
        self.pool = WorkerPool(config, uuid.uuid4().hex, self.metrics)
        self.dispatcher = Dispatcher(config, self.pool, self.index, self.metrics, Admission(config, self.metrics))
        self.streams = OpenStreams(config, self.metrics)
        self.text = TextPool(self.tokenizer, config)
        self.answers = Answers(config, self.text, self.dispatcher, self.streams)
        self.discovery = Discovery(self._registry, self.pool, self.index, self.metrics)
        await self.text.start()
        self.discovery.start()
        self.pool.start(self.dispatcher)
        self.streams.start()
        # What was loaded stays, so collections need not walk it. Rarer ones, of 50,000 objects, were measured too:
        # each stopped all streams for 30 to 70 ms.
        gc.collect()
        gc.freeze()

    async def stop(self) -> None:
        """Let go of everything; open requests are cancelled on their workers."""
        for flow in list(self.dispatcher.flows.values()):
            flow.cancel()
        await asyncio.sleep(0.05)  # let the cancels leave
        await self.discovery.close()
        await self.streams.close()
        await self.pool.close()
        await self.text.close()


def create_app(config: RouterConfig, registry: Registry | None = None) -> Envelope:
    """Build a router as an ASGI application; `registry` replaces the one that the config names."""
    state = RouterState(config, registry)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await state.start()
        try:
            yield
        finally:
            await state.stop()

    app = FastAPI(
        title="Baton",
        version=_version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.authenticator = Authenticator(config.api_key, config.cache_key)
    app.state.router = state
    app.include_router(page_routes())
    app.include_router(_public_routes(state))
    app.include_router(_routes(state, app), dependencies=[Depends(require_key)])
    app.add_exception_handler(BatonError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_failure)
    return Envelope(app, state.metrics, config)


def _public_routes(state: RouterState) -> APIRouter:
    routes = APIRouter()

    @routes.get("/health", summary="Whether the event loop is alive")
    async def health() -> Response:
        return JSON({"status": "ok"})

    @routes.get("/ready", summary="Whether requests would be served now", responses=_errors(503))
    async def ready() -> Response:
        workers = {"prefill": 0, "decode": 0}
        for worker in state.pool.workers.values():
            workers["prefill"] += worker.can_prefill
            workers["decode"] += worker.can_decode
        if state.is_draining or not workers["decode"]:
            reason = "it is draining" if state.is_draining else "no decode worker is alive"
            if state.discovery.is_cut_off and not state.is_draining:
                reason += ", and Redis, which names workers, does not answer"
            return JSON(error_object(f"The router is not ready: {reason}.", 503), status_code=503)
        return JSON({"status": "ready", "workers": workers})

    return routes


def _routes(state: RouterState, app: FastAPI) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/chat/completions", summary="Answer a conversation", **_operation("/v1/chat/completions"))
    async def chat(request: Request) -> Response:
        body = await _read_body(request, ChatRequest, state.config)
        return await _answer(await state.answers.chat(body, _caller(request)), request)

    @routes.post("/v1/completions", summary="Go on from one or more prompts", **_operation("/v1/completions"))
    async def completions(request: Request) -> Response:
        body = await _read_body(request, CompletionRequest, state.config)
        return await _answer(await state.answers.completion(body, _caller(request)), request)

    @routes.get("/v1/models", summary="Name the models that are served")
    async def models() -> Response:
        return JSON({"object": "list", "data": [_model_card(state, name) for name in state.config.model_names]})

    @routes.get("/v1/models/{name:path}", summary="Describe one model", responses=_errors(404))
    async def model(name: str) -> Response:
        return JSON(_model_card(state, state.answers.check_model(name)))

    @routes.post("/tokenize", summary="Turn text or messages into token ids", **_operation("/tokenize"))
    async def tokenize(request: Request) -> Response:
        body = await _read_body(request, TokenizeRequest, state.config)
        state.answers.check_model(body.model)
        token_ids = await _tokenize(state, body)
        facts = state.dispatcher.last_facts
        answer: dict[str, Any] = {
            "count": len(token_ids),
            "max_model_len": None if facts is None else facts.max_model_len,
            "tokens": token_ids,
            "token_strs": [state.text.token_text(t) for t in token_ids] if body.return_token_strs else None,
        }
        return JSON(answer)

    @routes.post("/detokenize", summary="Turn token ids into text", **_operation("/detokenize"))
    async def detokenize(request: Request) -> Response:
        body = await _read_body(request, DetokenizeRequest, state.config)
        state.answers.check_model(body.model)
        size = state.tokenizer.vocab_size
        for token_id in body.tokens:
            if token_id >= size:
                raise InvalidRequest(
                    f"tokens={token_id} is not valid: token ids of this tokenizer are 0 to {size - 1}.", field="tokens"
                )
        return JSON({"prompt": await state.text.run(state.tokenizer.decode, body.tokens)})

    @routes.get("/version", summary="Name the version that runs")
    async def version() -> Response:
        return JSON({"version": _version()})

    @routes.get("/metrics", summary="Every series, for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        state.dispatcher.count()
        state.metrics.streams_open.set(len(state.streams))
        return Response(state.metrics.render(), headers={"content-type": CONTENT_TYPE})

    @routes.get("/debug/route", summary="Explain where a request went", responses=_errors(400, 404))
    async def debug_route(request: Request) -> Response:
        request_id = request.query_params.get("id")
        if not request_id:
            raise InvalidRequest("id is missing. Give the request's x-request-id.", field="id")
        traces = state.dispatcher.journal.routes(request_id)
        if not traces:
            error = error_object("No such request is remembered here.", 404, param="id", code="not_found")
            return JSON(error, status_code=404)
        return JSON({"id": request_id, "routes": [_trace(trace) for trace in traces]})

    @routes.get("/debug/workers", summary="Show the workers as the router sees them")
    async def debug_workers() -> Response:
        awaited = state.dispatcher.num_awaited
        return JSON({"workers": [_worker(worker, awaited(worker)) for worker in state.pool.workers.values()]})

    @routes.get("/debug/requests", summary="Show when the last requests did what", responses=_errors(400))
    async def debug_requests(request: Request) -> Response:
        text = request.query_params.get("limit", str(CAPACITY))
        if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= CAPACITY):
            raise InvalidRequest(
                f"limit={text[:40]!r} is not valid: it must be a number from 1 to {CAPACITY}.", field="limit"
            )
        return JSON({"now": time.time(), "requests": state.dispatcher.last_requests(int(text))})

    @routes.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return JSON(_openapi(app))

    return routes


# -- requests -------------------------------------------------------------------------------------------------


async def _read_body(request: Request, model: type[_Model], config: RouterConfig) -> _Model:
    """Read and check a body.

    Raises:
        InvalidRequest: too long, too slow, not JSON, or not what the model takes.
    """
    limit = config.max_body_nbytes
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared[:20]) > limit:
        raise _too_long(int(declared[:20]), limit)
    parts, nbytes = [], 0
    try:
        async with asyncio.timeout(config.body_timeout_s):
            async for part in request.stream():
                nbytes += len(part)
                if nbytes > limit:
                    raise _too_long(nbytes, limit)
                parts.append(part)
    except ClientDisconnect:  # also after a chunk that is none: the protocol has answered already
        raise InvalidRequest("The body broke off.") from None
    except TimeoutError:
        raise BodyTooSlow(f"The body did not arrive within {config.body_timeout_s:g} s.") from None
    try:
        return model.model_validate_json(b"".join(parts))
    except ValidationError as error:
        raise refuse_validation(error) from None
    except (RecursionError, ValueError) as error:
        raise InvalidRequest(f"The body is not valid: {type(error).__name__}.") from None


def _too_long(nbytes: int, limit: int) -> BodyTooLong:
    return BodyTooLong(
        f"The body of {nbytes} bytes is not valid: at most {limit} bytes are taken. Send less, or raise "
        f"--max-body-nbytes.",
        code="body_too_long",
    )


def _caller(request: Request) -> Caller:
    """Read the headers that matter.

    Raises:
        InvalidRequest: x-request-timeout is not a number of seconds.
    """
    text = request.headers.get("x-request-timeout")
    timeout_s = None
    if text is not None:
        timeout_s = float(text) if _TIMEOUT.fullmatch(text) else 0.0
        if not 0 < timeout_s <= _MAX_TIMEOUT_S:
            raise InvalidRequest(
                f"x-request-timeout={text[:40]!r} is not valid: it must be seconds, above 0 and at most "
                f"{_MAX_TIMEOUT_S:g}.",
                field="x-request-timeout",
            )
    return Caller(
        request_id=request.scope["state"]["request_id"],
        tenant=request.state.tenant,
        timeout_s=timeout_s,
        explain=request.headers.get("x-baton-explain") in ("1", "true"),
    )


async def _answer(answer: Response | Pending, request: Request) -> Response:
    """Give a stream as it is; wait for a whole answer, but not for a client that has left."""
    if isinstance(answer, Response):
        return answer
    watch = asyncio.get_running_loop().create_task(_left(request))
    try:
        await asyncio.wait((answer.done, watch), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done.done():
            answer.cancel()
            return Response(status_code=499)  # nobody reads it
        answer.done.result()
        reply = answer.make()
        return JSON(reply.body, headers=reply.headers)
    except asyncio.CancelledError:
        answer.cancel()
        raise
    finally:
        watch.cancel()


async def _left(request: Request) -> None:
    """Return when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    request.app.state.router.metrics.client_disconnects.inc()


async def _tokenize(state: RouterState, body: TokenizeRequest) -> list[int]:
    if body.prompt is not None:
        return await state.text.encode(body.prompt, add_special_tokens=body.add_special_tokens is not False)
    messages: list[Message] = body.messages or []
    chat = ChatRequest(
        messages=messages,
        tools=body.tools,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        chat_template_kwargs=body.chat_template_kwargs,
    )
    return await state.text.render_chat(
        [message.for_template() for message in messages], tools=chat.used_tools, **chat.render_options()
    )


# -- errors ---------------------------------------------------------------------------------------------------


async def _on_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, BatonError)
    headers = {}
    if isinstance(error, Refused):
        headers["retry-after"] = str(error.retry_after_s)
    elif error.retryable:
        headers["retry-after"] = "1"
    if isinstance(error, NotAuthorized):
        headers["www-authenticate"] = "Bearer"
    return JSON(error_of(error), status_code=error.status, headers=headers)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """What the framework refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:80]
    missing = f"There is no {path} here."
    if path in ("/chat/completions", "/completions", "/models"):
        missing += f" There is /v1{path}: end the base URL with /v1."
    message = {404: missing, 405: f"{request.method} is not served on {path}."}.get(
        error.status_code, str(error.detail)
    )
    return JSON(error_object(message, error.status_code), status_code=error.status_code, headers=error.headers)


async def _on_failure(request: Request, _error: Exception) -> Response:
    """A mistake of ours; the envelope logs it."""
    request_id = request.scope["state"]["request_id"]
    error = error_object(f"The router failed. The log has the reason under {request_id}.", 500)
    return JSON(error, status_code=500)


# -- descriptions ---------------------------------------------------------------------------------------------


def _version() -> str:
    try:
        return importlib.metadata.version("batonllm")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


def _model_card(state: RouterState, name: str) -> dict[str, Any]:
    facts = state.dispatcher.last_facts
    return {
        "id": name,
        "object": "model",
        "created": state.started_at,
        "owned_by": "baton",
        "root": state.config.model,
        "parent": None,
        "max_model_len": None if facts is None else facts.max_model_len,
    }


def _trace(trace: Any) -> dict[str, Any]:
    def option(option: Any) -> dict[str, Any]:
        return {
            "path": option.path,
            "decode": option.decode,
            "prefill": option.prefill,
            "cost_ms": option.cost_ms,
            "terms": dict(option.terms),
        }

    return {
        "at": trace.at,
        "epoch": trace.epoch,
        "chosen": option(trace.decision.chosen),
        "considered": [option(other) for other in trace.decision.considered],
    }


def _worker(worker: Worker, num_awaited: int) -> dict[str, Any]:
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
        "in_flight": len(worker.request_ids),
        "awaited": num_awaited,
        "prefill_rate": load.prefill_rate,
        "decode_step_ms": load.decode_step_ms,
        "http": info.http,
        "control": info.control,
        "incarnation": info.incarnation,
    }


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": _ERROR_SCHEMA}}
    return {status: {"description": "Refused", "content": content} for status in statuses}


def _operation(path: str) -> dict[str, Any]:
    """Describe a route's body: the models are checked by us, so the framework does not know them."""
    schema = {"$ref": f"#/components/schemas/{_BODIES[path].__name__}"}
    answers: dict[int | str, dict[str, Any]] = {
        200: {"description": "The answer, or its events", "content": {"application/json": {}, "text/event-stream": {}}}
    }
    return {
        "responses": answers | _errors(400, 404, 408, 413, 429, 499, 503, 504),
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
    }


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Give the OpenAPI file."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    _, models = models_json_schema(
        [(model, "validation") for model in _BODIES.values()], ref_template="#/components/schemas/{model}"
    )
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(models["$defs"])
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path not in PUBLIC_PATHS:
                operation["security"] = [{"key": []}]
                operation["responses"].update({str(status): answer for status, answer in _errors(401, 431).items()})
            operation["responses"].pop("422", None)
    return document
