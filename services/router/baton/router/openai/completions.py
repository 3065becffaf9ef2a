"""POST /v1/completions: check, tokenize, send on its way; then a stream of events, or one body."""

from __future__ import annotations

import time
import uuid
from functools import partial
from itertools import chain
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from baton.errors import refuse
from baton.infilling import Infilling, infilling_of
from baton.prompt import Prompt
from baton.requests.completions import CompletionRequest
from baton.requests.truncation import cut_prompt
from baton.router.http_request import read_request
from baton.router.json_answers import LongJSON
from baton.router.openai.best_answers import keep_best
from baton.router.openai.bodies import BODY, CollectSink, CompletionAnswer
from baton.router.openai.events import AnswerEvents, CompletionEvents
from baton.router.openai.json_pieces import joined_pieces, object_pieces, whole
from baton.router.openai.logprobs import Echo
from baton.router.openai.model_checks import check_with_model, facts_of
from baton.router.openai.models import check_model
from baton.router.openai.open_request import OpenRequest, reading
from baton.router.openapi_file import operation
from baton.router.router_state import RouterState


def completion_routes(router: RouterState) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/completions", summary="Go on from one or more prompts", **operation(CompletionRequest))
    async def completions(http: Request) -> Response:
        request, caller = await read_request(http, CompletionRequest, router)
        model = check_model(router, request.model)
        params = request.sampling_params(router.config.limits)
        infilling = _infilling(router, request)
        if infilling is not None and infilling.ends:
            params = params.replace(stop_token_ids=(*params.stop_token_ids, *infilling.ends))
        began = time.monotonic()
        prompts = []
        with reading(router, params, caller):
            max_model_len = facts_of(router).max_model_len
            for given in request.prompt:
                token_ids = await _encode(router, request, given, infilling) if isinstance(given, str) else given
                prompts.append(Prompt(cut_prompt(request, token_ids, max_model_len, params.max_tokens)))
        router.metrics.phase_seconds.observe("tokenize", time.monotonic() - began)

        params = await check_with_model(router, request, params, prompts)
        opened = OpenRequest(router, request, params, prompts, caller)
        tokenizer = router.tokenizer
        echoes = [
            await _echo(router, request, given, prompt) if request.echo else None
            for given, prompt in zip(request.prompt, prompts, strict=True)
        ]
        frame = {
            "id": f"cmpl-{request.request_id or uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        if request.stream:
            stream = router.streams.open(opened.cancel)
            events = AnswerEvents(request, frame, stream, opened.tally, tokenizer, opened.cancel)
            sinks = [
                CompletionEvents(events, request, prompt.token_ids, offset=i * params.n, echo=echoes[i])
                for i, prompt in enumerate(prompts)
            ]
            stream.headers.update(await opened.start(sinks))
            return stream

        collectors = [CollectSink(params.n, opened.tally, opened.done, opened.cancel) for _ in prompts]
        headers = await opened.start(collectors)
        await opened.wait(http)
        await keep_best(opened, collectors, request.num_answers)
        choices = chain.from_iterable(
            CompletionAnswer(request, sink, tokenizer, prompts[i].token_ids, echoes[i]).choices(i * request.num_answers)
            for i, sink in enumerate(collectors)
        )
        long = {"choices": joined_pieces(choices), "usage": whole(opened.tally.usage())}
        return LongJSON(object_pieces(frame | BODY, long), router.turns, headers)

    return routes


def _infilling(router: RouterState, request: CompletionRequest) -> Infilling | None:
    """Return how a suffix is shown to the model, if there is one.

    Raises:
        InvalidRequest: the model has no way.
    """
    if not request.suffix:
        return None
    infilling = infilling_of(router.tokenizer)
    if infilling is None:
        way_out = "Leave it out, or ask a model that has: Qwen2.5-Coder, StarCoder, DeepSeek-Coder, CodeLlama."
        raise refuse("suffix", request.suffix, "this model has no tokens for filling in the middle", way_out)
    return infilling


async def _encode(router: RouterState, request: CompletionRequest, text: str, infilling: Infilling | None) -> list[int]:
    max_model_len = facts_of(router).max_model_len if request.truncate_prompt_tokens is None else None
    add_special_tokens = request.add_special_tokens is not False
    encode = partial(router.text.encode, max_model_len=max_model_len)
    if infilling is None:
        return await encode(text, add_special_tokens=add_special_tokens)
    begin = await encode("", add_special_tokens=add_special_tokens)
    prefix_ids = await encode(text, add_special_tokens=False)
    suffix_ids = await router.text.run(infilling.suffix_ids, router.tokenizer, request.suffix)
    return infilling.prompt(begin, prefix_ids, suffix_ids)


async def _echo(router: RouterState, request: CompletionRequest, given: Any, prompt: Prompt) -> Echo:
    """Give a prompt back as it was sent: a text as it is, token ids, and what is left of a cut, with special tokens."""
    tokenizer, run = router.tokenizer, router.text.run
    if isinstance(given, list) or request.truncate_prompt_tokens is not None:
        text, offsets = await run(tokenizer.decode_with_offsets, prompt.token_ids)
        return Echo(text, offsets)
    if request.logprobs is None:
        return Echo(given)
    add = request.add_special_tokens is not False
    return Echo(given, await run(partial(tokenizer.offsets, given, add_special_tokens=add)))
