"""POST /v1/score and /v1/rerank: how well texts fit, by a classifier of pairs, or else by the cosine of their vectors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import starmap
from operator import mul
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from baton.errors import refuse
from baton.messages import ModelFacts
from baton.pooled_text import Cut, encode_pairs, encode_texts
from baton.pooling import PoolingParams, check_pooled_prompt
from baton.prompt import Prompt
from baton.requests.pooling import PoolingRequest, RerankRequest, ScoreRequest
from baton.router.http_request import Caller, read_request
from baton.router.json_answers import LongJSON
from baton.router.openai.embeddings import answer_frame, encode_aside, floats, pooling_facts
from baton.router.openai.json_pieces import list_pieces, object_pieces, whole
from baton.router.openai.model_checks import facts_of
from baton.router.openai.models import check_model
from baton.router.openai.open_pooling import OpenPooling
from baton.router.openapi_file import operation
from baton.router.router_state import RouterState

_AT_ONCE = 1024


def score_routes(router: RouterState) -> APIRouter:
    routes = APIRouter()

    @routes.post("/score", summary="The same as /v1/score", **operation(ScoreRequest))
    @routes.post("/v1/score", summary="Say how well texts fit", **operation(ScoreRequest))
    async def score(http: Request) -> Response:
        request, caller = await read_request(http, ScoreRequest, router)
        model, facts = check_model(router, request.model), facts_of(router)
        scores, usage = await _score(router, http, request, request.pairs(), caller, facts, "text_2")
        data = [{"index": i, "object": "score", "score": each} for i, each in enumerate(scores)]
        frame = answer_frame("score", model, request.request_id) | {"object": "list"}
        pieces = {"data": list_pieces(data, size=_AT_ONCE), "usage": whole(usage)}
        return LongJSON(object_pieces(frame, pieces), router.turns)

    @routes.post("/rerank", summary="The same as /v1/rerank", **operation(RerankRequest))
    @routes.post(
        "/v2/rerank", summary="The same as /v1/rerank, where Cohere's clients look", **operation(RerankRequest)
    )
    @routes.post("/v1/rerank", summary="Order documents by how well they fit a query", **operation(RerankRequest))
    async def rerank(http: Request) -> Response:
        request, caller = await read_request(http, RerankRequest, router)
        model, facts = check_model(router, request.model), facts_of(router)
        scores, usage = await _score(router, http, request, request.pairs(), caller, facts, "documents")
        order = sorted(range(len(scores)), key=lambda i: -scores[i])[: request.top_n or None]
        results: list[dict[str, Any]] = [{"index": i, "relevance_score": scores[i]} for i in order]
        if request.return_documents:
            for each in results:
                each["document"] = {"text": request.documents[each["index"]]}
        frame = answer_frame("rerank", model, request.request_id)
        pieces = {"results": list_pieces(results, size=_AT_ONCE // 16), "usage": whole(usage)}
        return LongJSON(object_pieces(frame, pieces), router.turns)

    return routes


async def _score(
    router: RouterState,
    http: Request,
    request: PoolingRequest,
    pairs: Sequence[tuple[str, str]],
    caller: Caller,
    facts: ModelFacts,
    field: str,
) -> tuple[list[float], dict[str, object]]:
    """Score pairs; return the scores in their order, and the usage."""
    is_classifier = facts.pooling is not None and "classify" in facts.pooling.tasks
    pooling = pooling_facts(facts, "classify" if is_classifier else "embed")
    if is_classifier and len(pooling.labels) != 1:
        count = len(pooling.labels)
        way_out = "Ask /classify, or a model with one class."
        raise refuse("model", facts.name, f"it sorts into {count} classes, and a score is one number", way_out)
    cut = Cut.of(request.truncate_prompt_tokens, request.truncation_side, facts.max_model_len)
    lowercase, tokenizer, began = pooling.lowercase, router.tokenizer, time.monotonic()
    if is_classifier:
        use = request.use_activation

        def encode(some: Sequence[tuple[str, str]]) -> list[tuple[list[int], int]]:
            return encode_pairs(tokenizer, some, cut, field=field, lowercase=lowercase)

        encoded = await encode_aside(router, encode, pairs, sum(len(a) + len(b) for a, b in pairs))
        params = [PoolingParams("classify", use_activation=use, second_at=at) for _, at in encoded]
        prompts = [Prompt(token_ids) for token_ids, _ in encoded]
    else:
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))  # a query is computed once
        add = request.add_special_tokens is not False

        def encode_each(some: Sequence[str]) -> list[list[int]]:
            return encode_texts(tokenizer, some, cut, field=field, lowercase=lowercase, add_special_tokens=add)

        prompts = [Prompt(ids) for ids in await encode_aside(router, encode_each, texts, sum(map(len, texts)))]
        params = [PoolingParams(use_activation=True)] * len(prompts)
    router.metrics.phase_seconds.observe("tokenize", time.monotonic() - began)
    for index, prompt in enumerate(prompts):
        where = field if len(prompts) == 1 else f"{field}[{index}]"
        check_pooled_prompt(prompt, facts.vocab_size, facts.max_model_len, where)
    opened = OpenPooling(router, request, caller, prompts, params)
    made = await opened.run(http, facts)
    if is_classifier:
        return [floats(each)[0] for each in made], opened.usage
    vectors = {text: floats(each) for text, each in zip(texts, made, strict=True)}
    return [sum(starmap(mul, zip(vectors[a], vectors[b], strict=True))) for a, b in pairs], opened.usage
