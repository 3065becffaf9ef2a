"""POST /v1/messages and /v1/messages/count_tokens: check, go on as a chat; then events, or one body."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from baton.requests.anthropic import CountTokensRequest, MessagesRequest
from baton.requests.chat import ChatRequest
from baton.requests.translated import Context, fields_named
from baton.router.anthropic.errors import ANTHROPIC_FORM
from baton.router.anthropic.writer import MessageWriter
from baton.router.http_request import read_caller, read_translated, receive_body
from baton.router.json_answers import JSON
from baton.router.openai.blocks import BlockSink
from baton.router.openai.chat import open_chat, render_chat
from baton.router.openai.models import check_model
from baton.router.openai.outlets import StreamOutlet, WholeOutlet, keep_nothing
from baton.router.openapi_file import operation
from baton.router.router_state import RouterState


def anthropic_routes(router: RouterState) -> APIRouter:
    routes = APIRouter()

    async def read(http: Request, model: type[CountTokensRequest]) -> tuple[ChatRequest, bytes, str]:
        body = await receive_body(http, router.config)
        request, raw = await read_translated(model, body, Context(), router)
        return request, raw, check_model(router, request.model)

    @routes.post("/v1/messages", summary="Answer a conversation, as Anthropic's API", **operation(MessagesRequest))
    async def create(http: Request) -> Response:
        request, raw, model = await read(http, MessagesRequest)
        with fields_named(MessagesRequest.chat_names):
            chat = await open_chat(router, request, read_caller(http, router))
        opened, num_prompt = chat.opened, len(chat.prompt)

        if msgspec.msgpack.decode(raw, type=bool):
            stream = router.streams.open(opened.cancel, ANTHROPIC_FORM)
            writer = MessageWriter(model, StreamOutlet(stream, keep_nothing))
            sink = BlockSink(writer, opened.tally, num_prompt, None, opened.cancel)
            stream.headers.update(await opened.start([sink], chat.new_parser))
            return stream
        outlet = WholeOutlet(opened.done, keep_nothing)
        sink = BlockSink(MessageWriter(model, outlet), opened.tally, num_prompt, None, opened.cancel)
        headers = await opened.start([sink], chat.new_parser)
        await opened.wait(http)
        return Response(outlet.body, headers=headers, media_type="application/json")

    @routes.post(
        "/v1/messages/count_tokens",
        summary="Count the tokens of a conversation, as Anthropic's API",
        **operation(CountTokensRequest),
    )
    async def count_tokens(http: Request) -> Response:
        request, _, _ = await read(http, CountTokensRequest)
        with fields_named(CountTokensRequest.chat_names):
            prompt = await render_chat(router, request)
        return JSON({"input_tokens": len(prompt)})

    return routes
