"""POST /v1/chat/completions: check, render, send on its way; then a stream of events, or one body."""

from __future__ import annotations

import time
import uuid
from typing import Any, NamedTuple

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from baton.prompt import Prompt
from baton.protocol import SamplingParams
from baton.requests.chat import ChatRequest
from baton.requests.truncation import cut_prompt
from baton.router.http_request import Caller, read_request
from baton.router.json_answers import LongJSON
from baton.router.openai.best_answers import keep_best
from baton.router.openai.bodies import BODY, CollectSink, chat_pieces
from baton.router.openai.events import AnswerEvents, ChatEvents
from baton.router.openai.json_pieces import object_pieces, whole
from baton.router.openai.model_checks import check_with_model, facts_of
from baton.router.openai.models import check_model
from baton.router.openai.open_request import OpenRequest, reading
from baton.router.openai.parts import NewParser
from baton.router.openapi_file import operation
from baton.router.router_state import RouterState


def chat_routes(router: RouterState) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/chat/completions", summary="Answer a conversation", **operation(ChatRequest))
    async def chat(http: Request) -> Response:
        request, caller = await read_request(http, ChatRequest, router)
        model = check_model(router, request.model)
        chat = await open_chat(router, request, caller)
        opened, prompt = chat.opened, chat.prompt
        frame: dict[str, Any] = {
            "id": f"chatcmpl-{request.request_id or uuid.uuid4().hex}",
            "object": "chat.completion.chunk" if request.stream else "chat.completion",
            "created": int(time.time()),
            "model": model,
        }
        if request.stream:
            stream = router.streams.open(opened.cancel)
            events = AnswerEvents(request, frame, stream, opened.tally, router.tokenizer, opened.cancel)
            stream.headers.update(
                await opened.start([ChatEvents(events, prompt.token_ids, request.echoed)], chat.new_parser)
            )
            return stream

        sink = CollectSink(chat.params.n, opened.tally, opened.done, opened.cancel)
        headers = await opened.start([sink], chat.new_parser)
        await opened.wait(http)
        await keep_best(opened, [sink], request.num_answers, chat.new_parser)
        pieces = chat_pieces(request, sink, router.tokenizer, prompt.token_ids)
        body = object_pieces(frame | BODY, pieces | {"usage": whole(opened.tally.usage())})
        return LongJSON(body, router.turns, headers)

    return routes


class OpenChat(NamedTuple):
    """A conversation that can be sent on its way."""

    opened: OpenRequest
    params: SamplingParams
    prompt: Prompt
    new_parser: NewParser | None
    """None: the text of a choice is all that it has."""


async def open_chat(router: RouterState, request: ChatRequest, caller: Caller) -> OpenChat:
    """Check a conversation and render it: for every route that answers one.

    Raises:
        BatonError: it cannot be served, or not now.
    """
    params = request.sampling_params(router.config.limits)
    with reading(router, params, caller):
        prompt = await render_chat(router, request)
    params, new_parser = router.answer_forms.of(request, prompt.token_ids, params)
    params = await check_with_model(router, request, params, [prompt])
    opened = OpenRequest(router, request, params, [prompt], caller)
    return OpenChat(opened, params, prompt, new_parser)


async def render_chat(router: RouterState, request: ChatRequest) -> Prompt:
    """Return the prompt that a conversation makes."""
    began, max_model_len = time.monotonic(), facts_of(router).max_model_len
    token_ids = await router.text.chat_ids(
        request,
        add_special_tokens=bool(request.add_special_tokens),
        max_model_len=max_model_len if request.truncate_prompt_tokens is None else None,
    )
    router.metrics.phase_seconds.observe("tokenize", time.monotonic() - began)
    max_tokens = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    return Prompt(cut_prompt(request, token_ids, max_model_len, max_tokens))
