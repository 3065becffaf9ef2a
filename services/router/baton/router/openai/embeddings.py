"""POST /v1/embeddings, /pooling and /classify: inputs to token ids, each to a worker, their vectors or classes back."""

from __future__ import annotations

import base64
import time
import uuid
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from baton.errors import InvalidRequest
from baton.messages import ModelFacts, Pooled
from baton.pooled_text import Cut, encode_texts
from baton.pooling import PoolingFacts, PoolingParams, Task, check_pooled_prompt
from baton.prompt import Prompt
from baton.requests.pooling import ClassifyRequest, EmbeddingRequest, InputRequest, PoolRequest
from baton.router.http_request import Caller, read_request
from baton.router.json_answers import LongJSON
from baton.router.openai.json_pieces import Pieces, joined_pieces, object_pieces, whole
from baton.router.openai.model_checks import facts_of
from baton.router.openai.models import check_model
from baton.router.openai.open_pooling import OpenPooling
from baton.router.openapi_file import operation
from baton.router.router_state import RouterState

_TEXTS_AT_ONCE = 64
_INLINE_LEN = 1500
"""Characters encoded on the loop: below a millisecond."""


def embedding_routes(router: RouterState) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/embeddings", summary="Turn texts into vectors", **operation(EmbeddingRequest))
    async def embeddings(http: Request) -> Response:
        request, caller = await read_request(http, EmbeddingRequest, router)
        model, facts = check_model(router, request.model), facts_of(router)
        params = request.pooling_params()
        made, usage = await _pool(router, http, request, caller, facts, params)
        data = _entries(request, made, "embedding", "embedding")
        return _answer(router, "embd", model, request.request_id, data, usage)

    @routes.post("/pooling", summary="Give what the model pools", **operation(PoolRequest))
    async def pooling(http: Request) -> Response:
        request, caller = await read_request(http, PoolRequest, router)
        model, facts = check_model(router, request.model), facts_of(router)
        wanted = request.pooling_params()
        task = request.task or pooling_facts(facts, "embed").tasks[0]
        params = PoolingParams(task, wanted.dimensions, wanted.use_activation)
        made, usage = await _pool(router, http, request, caller, facts, params)
        data = _entries(request, made, "pooling", "data")
        return _answer(router, "pool", model, request.request_id, data, usage)

    @routes.post("/classify", summary="Sort texts into the model's classes", **operation(ClassifyRequest))
    async def classify(http: Request) -> Response:
        request, caller = await read_request(http, ClassifyRequest, router)
        model, facts = check_model(router, request.model), facts_of(router)
        params = PoolingParams("classify", use_activation=request.use_activation)
        made, usage = await _pool(router, http, request, caller, facts, params)
        labels = pooling_facts(facts, "classify").labels
        data = (whole(_class(i, each, labels)) for i, each in enumerate(made))
        return _answer(router, "classify", model, request.request_id, data, usage)

    return routes


def pooling_facts(facts: ModelFacts, task: Task) -> PoolingFacts:
    """Return what the model pools.

    Raises:
        InvalidRequest: it generates, or pools something else.
    """
    if facts.pooling is None:
        raise InvalidRequest(
            f"{facts.name} generates text and gives no vectors or scores: ask /v1/chat/completions or /v1/completions, "
            "or serve an embedding model (--convert embed makes one of a model that generates).",
            field="model",
            code="model_not_supported",
        )
    facts.pooling.check_task(task)
    return facts.pooling


async def encode_aside(
    router: RouterState, encode: Callable[..., list[Any]], items: Sequence[Any], num_chars: int, *args: Any
) -> list[Any]:
    """Encode items, some at a time, and long ones in a thread."""
    if num_chars <= _INLINE_LEN:
        return encode(items, *args)
    made: list[Any] = []
    for at in range(0, len(items), _TEXTS_AT_ONCE):
        made += await router.text.run(encode, items[at : at + _TEXTS_AT_ONCE], *args)
    return made


async def _pool(
    router: RouterState, http: Request, request: InputRequest, caller: Caller, facts: ModelFacts, params: PoolingParams
) -> tuple[list[Pooled], dict[str, object]]:
    """Check a request against the model, and have its inputs pooled."""
    pooling_facts(facts, params.task).check_dimensions(params.dimensions)
    began = time.monotonic()
    prompts = [Prompt(token_ids) for token_ids in await _encode(router, request, facts)]
    router.metrics.phase_seconds.observe("tokenize", time.monotonic() - began)
    for index, prompt in enumerate(prompts):
        field = "input" if len(prompts) == 1 else f"input[{index}]"
        check_pooled_prompt(prompt, facts.vocab_size, facts.max_model_len, field)
    opened = OpenPooling(router, request, caller, prompts, [params] * len(prompts))
    return await opened.run(http, facts), opened.usage


async def _encode(router: RouterState, request: InputRequest, facts: ModelFacts) -> list[list[int]]:
    cut = Cut.of(request.truncate_prompt_tokens, request.truncation_side, facts.max_model_len)
    given = request.input
    if given is None:
        token_ids = await router.text.chat_ids(request, add_special_tokens=bool(request.add_special_tokens))
        return [cut.ids(token_ids, "messages")]
    if not isinstance(given[0], str):
        many: Any = given
        return [cut.ids(ids, "input" if len(many) == 1 else f"input[{i}]") for i, ids in enumerate(many)]
    add, lowercase = request.add_special_tokens is not False, facts.pooling is not None and facts.pooling.lowercase

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return encode_texts(router.tokenizer, texts, cut, field="input", lowercase=lowercase, add_special_tokens=add)

    return await encode_aside(router, encode, given, sum(map(len, given)))


# -- answers ------------------------------------------------------------------------------------------------


def floats(pooled: Pooled) -> list[float]:
    """Return all of its numbers."""
    return array("f", pooled.data).tolist()


def _numbers(pooled: Pooled) -> bytes:
    values = floats(pooled)
    if len(pooled.shape) == 1:
        return orjson.dumps(values)
    size = pooled.shape[1]
    return orjson.dumps([values[at : at + size] for at in range(0, len(values), size)])


def _base64(pooled: Pooled) -> bytes:
    return b'"%b"' % base64.b64encode(pooled.data)


def _entries(
    request: EmbeddingRequest | PoolRequest, made: Sequence[Pooled], kind: str, field: str
) -> Iterator[Pieces]:
    show = _base64 if request.encoding_format == "base64" else _numbers
    return (_entry(i, each, show, kind, field) for i, each in enumerate(made))


def _entry(index: int, pooled: Pooled, show: Callable[[Pooled], bytes], kind: str, field: str) -> Pieces:
    yield b'{"object":"%b","index":%d,"%b":' % (kind.encode(), index, field.encode())
    yield show(pooled)
    yield b"}"


def _class(index: int, pooled: Pooled, labels: Sequence[str]) -> dict[str, Any]:
    values = floats(pooled)
    best = values.index(max(values))
    return {
        "index": index,
        "label": labels[best] if best < len(labels) else str(best),
        "probs": values,
        "num_classes": len(values),
    }


def _answer(
    router: RouterState, kind: str, model: str, request_id: str | None, data: Any, usage: dict[str, object]
) -> Response:
    frame = answer_frame(kind, model, request_id) | {"object": "list"}
    return LongJSON(object_pieces(frame, {"data": joined_pieces(data), "usage": whole(usage)}), router.turns)


def answer_frame(kind: str, model: str, request_id: str | None) -> dict[str, Any]:
    """Return the fields with which each answer begins."""
    return {"id": f"{kind}-{request_id or uuid.uuid4().hex}", "created": int(time.time()), "model": model}
