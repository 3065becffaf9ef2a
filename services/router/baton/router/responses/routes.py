"""POST /v1/responses, and what is asked of answers that are kept."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import msgspec
import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from baton.errors import InvalidRequest, refuse
from baton.requests.responses import Kept, ResponsesRequest
from baton.requests.translated import fields_named
from baton.router.http_request import read_caller, read_translated, receive_body
from baton.router.json_answers import JSON
from baton.router.openai.chat import open_chat
from baton.router.openai.models import check_model
from baton.router.openai.outlets import StreamOutlet, WholeOutlet
from baton.router.openapi_file import errors, operation
from baton.router.responses.background import RESPONSE_FORM, BackgroundOutlet
from baton.router.responses.frame import new_response_id
from baton.router.responses.making import ResponseInMaking
from baton.router.responses.opening import ResponseGone, listed, read_context
from baton.router.responses.store import OPEN, Key, Record
from baton.router.router_state import RouterState

_MAX_PAGE, _PAGE = 100, 20
_MAX_LOGS = 64
_CANCEL_S = 5.0
"""How long another router is given to say that it has cancelled."""


def response_routes(router: RouterState) -> APIRouter:
    routes = APIRouter()
    logs: OrderedDict[Key, BackgroundOutlet] = OrderedDict()
    """Events of the last responses that were made in the background, for those who come back to a stream."""

    @routes.post("/v1/responses", summary="Answer a conversation, as items", **operation(ResponsesRequest))
    async def create(http: Request) -> Response:
        body = await receive_body(http, router.config)
        key: Key = http.state.tenant, new_response_id()
        context = await read_context(router.responses, key[0], body, key[1])
        request, raw = await read_translated(ResponsesRequest, body, context, router)
        kept = msgspec.msgpack.decode(raw, type=Kept)
        model = check_model(router, request.model)
        making = ResponseInMaking(router, key, model, request, kept, context)
        with fields_named(ResponsesRequest.chat_names):
            chat = await open_chat(router, request, read_caller(http, router))

        if kept.background:
            max_nbytes = router.config.stream_buffer_nbytes
            log = BackgroundOutlet(making.keep, has_reader=kept.stream, max_nbytes=max_nbytes)
            making.open(chat, log)
            await making.start_in_background()
            if not kept.stream:
                return _body(making.so_far())
            logs[key] = log
            if len(logs) > _MAX_LOGS:
                logs.popitem(last=False)
            return _follow(log, -1)
        if kept.stream:
            stream = router.streams.open(chat.opened.cancel, RESPONSE_FORM)
            making.open(chat, StreamOutlet(stream, making.keep))
            stream.headers.update(await making.start())
            return stream
        outlet = WholeOutlet(chat.opened.done, making.keep)
        making.open(chat, outlet)
        headers = await making.start()
        await chat.opened.wait(http)
        return _body(outlet.body, headers)

    def _follow(log: BackgroundOutlet, after: int) -> Response:
        stream = router.streams.open(lambda: log.leave(stream), RESPONSE_FORM)
        log.read(stream, after)
        return stream

    async def _record(http: Request, response_id: str) -> tuple[Key, Record]:
        key: Key = http.state.tenant, response_id
        record = await router.responses.get(key)
        if record is None:
            message = f"Response with id '{response_id[:80]}' not found."
            raise ResponseGone(message, field="response_id", code="response_not_found")
        return key, record

    @routes.get("/v1/responses/{response_id}", summary="Fetch an answer that is kept", responses=errors(400, 404))
    async def retrieve(http: Request, response_id: str) -> Response:
        key, record = await _record(http, response_id)
        if http.query_params.get("stream") == "true":
            if key not in logs or not logs[key].is_kept:
                reason = (
                    "only what was made here with background and stream, not long ago and not long, is streamed again"
                )
                raise refuse("stream", True, reason, "Fetch it without stream.")
            return _follow(logs[key], _number(http, "starting_after", -1, 2**31))
        made = router.responses.making.get(key)
        return _body(record.response if made is None else made.so_far())

    @routes.delete("/v1/responses/{response_id}", summary="Delete an answer that is kept", responses=errors(404))
    async def delete(http: Request, response_id: str) -> Response:
        key, _ = await _record(http, response_id)
        if key in router.responses.making:
            await router.responses.cancel(key)
        logs.pop(key, None)
        await router.responses.delete(key)
        return JSON({"id": response_id, "object": "response", "deleted": True})

    @routes.post(
        "/v1/responses/{response_id}/cancel",
        summary="Cancel an answer that is made in the background",
        responses=errors(400, 404, 503),
    )
    async def cancel(http: Request, response_id: str) -> Response:
        key, record = await _record(http, response_id)
        if not orjson.loads(record.response)["background"]:
            message = "Cannot cancel a synchronous response: close its connection."
            raise InvalidRequest(message, field="response_id")
        if record.status in OPEN:
            await router.responses.cancel(key)
            until = asyncio.get_running_loop().time() + _CANCEL_S
            while record.status in OPEN and asyncio.get_running_loop().time() < until:
                await asyncio.sleep(0.02)
                key, record = await _record(http, response_id)
        return _body(record.response)

    @routes.get(
        "/v1/responses/{response_id}/input_items",
        summary="List what an answer that is kept was made of",
        responses=errors(400, 404),
    )
    async def input_items(http: Request, response_id: str) -> Response:
        _, record = await _record(http, response_id)
        items = [*listed(record.before), *listed(record.input)]
        order = http.query_params.get("order", "desc")
        if order not in ("asc", "desc"):
            raise refuse("order", order, "it must be asc or desc")
        if order == "desc":
            items.reverse()
        ids = [msgspec.json.decode(item, type=_Named).id for item in items]
        after = http.query_params.get("after")
        if after is not None and after not in ids:
            raise refuse("after", after, "there is no such item")
        begin = 0 if after is None else ids.index(after) + 1
        end = begin + _number(http, "limit", _PAGE, _MAX_PAGE)
        page = {
            "object": "list",
            "data": items[begin:end],
            "first_id": next(iter(ids[begin:end]), None),
            "last_id": next(reversed(ids[begin:end]), None),
            "has_more": end < len(ids),
        }
        return _body(msgspec.json.encode(page))

    return routes


class _Named(msgspec.Struct):
    id: str


def _number(http: Request, name: str, default: int, most: int) -> int:
    text = http.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= most):
        raise refuse(name, text, f"it must be a number from 0 to {most}")
    return int(text)


def _body(response: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(response, headers=headers, media_type="application/json")
