"""The process that reads long bodies: JSON, its checks and the chat template, all of which hold an interpreter for long."""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import orjson
from pydantic import BaseModel

from baton.errors import InvalidRequest
from baton.prompt import Prompt
from baton.protocol import check_prompt
from baton.requests.anthropic import CountTokensRequest, MessagesRequest
from baton.requests.chat import ChatRequest
from baton.requests.completions import CompletionRequest
from baton.requests.conversation import Conversation
from baton.requests.limits import Limits
from baton.requests.pooling import (
    ClassifyRequest,
    EmbeddingRequest,
    InputRequest,
    PoolingRequest,
    PoolRequest,
    RerankRequest,
    ScoreRequest,
)
from baton.requests.refusals import read_json
from baton.requests.responses import ResponsesRequest
from baton.requests.tokenize import DetokenizeRequest, TokenizeRequest
from baton.requests.translated import Context, Translates, fields_named
from baton.router.frames import answer_frames
from baton.router.render import render

MODELS: dict[str, type[BaseModel]] = {
    model.__name__: model
    for model in (
        *(ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest, ResponsesRequest),
        *(MessagesRequest, CountTokensRequest),
        *(EmbeddingRequest, PoolRequest, ClassifyRequest, ScoreRequest, RerankRequest),
    )
}
_LONG = {
    *("messages", "tools", "documents", "chat_template", "chat_template_kwargs"),
    *("metadata", "prompt_cache_options", "prompt", "tokens", "input"),
    *("text_1", "text_2", "query", "documents"),
}
"""Fields that may hold much: what the router needs of them stands beside the request."""
_MAX_SCHEMAS_LEN = 2**18
"""Of tools: what the router checks again in a few milliseconds."""


def read_long(job: dict[str, Any]) -> dict[str, Any]:
    """Read a body; return the request less what is long, with that as the router takes it, or why it is refused."""
    try:
        request, kept = read_json(MODELS[job["model"]], job["body"]), b""
        names: Mapping[str, str] = {}
        if isinstance(request, Translates):
            names = request.chat_names
            request, kept = request.translate(msgspec.msgpack.decode(job["context"], type=Context))
        with fields_named(names) if names else contextlib.nullcontext():
            if isinstance(request, (ChatRequest, CompletionRequest)):
                request.sampling_params(Limits(*job["limits"]))
            # pydantic warns of tuples and keys that its own way to JSON has made lists and strings
            left = request.model_dump_json(exclude=_LONG, exclude_none=True, warnings=False)
            return {"request": left, "kept": kept, **_long_parts(request, job)}
    except InvalidRequest as error:
        about = {"field": error.field, "code": error.code}
        return {"refusal": str(error), "kind": type(error).__name__} | about
    except MemoryError:
        return {"refusal": "The body is not valid: it needs too much memory.", "kind": "InvalidRequest"}


def _long_parts(request: BaseModel, job: dict[str, Any]) -> dict[str, Any]:
    if isinstance(request, Conversation) and request.messages is not None:
        shown = request.for_template()
        has_tools = bool(shown["tools"])
        source, why_none = job["templates"][has_tools]
        own = request.own_template(trusted=job["trusts_templates"])
        if why_none and own is None:
            raise InvalidRequest(why_none, field="messages")
        template = {"template": own or source, **job["template"]}
        parts = {"rendered": render(template | shown), "beside": {"tools": _tools_of(request) if has_tools else None}}
        return parts | ({"echoed": request.echoed} if isinstance(request, ChatRequest) else {})
    if isinstance(request, DetokenizeRequest):
        return {"tokens": _packed(request.tokens)}
    if isinstance(request, PoolingRequest):
        values = {name: getattr(request, name) for name in request.long}
        if isinstance(request, InputRequest) and request.input and not isinstance(request.input[0], str):
            return {"packed": {"input": [_packed(token_ids) for token_ids in request.input]}}
        return {"long": values}
    prompt: Any = getattr(request, "prompt", None)
    if isinstance(prompt, str) or isinstance(prompt[0], str):
        return {"prompt": prompt}
    is_cut = getattr(request, "truncate_prompt_tokens", None) is not None
    max_model_len = 2**31 if is_cut else job["max_model_len"]
    for index, token_ids in enumerate(prompt):
        try:
            check_prompt(Prompt(token_ids), job["vocab_size"], max_model_len)
        except InvalidRequest as error:
            raise (error if len(prompt) == 1 else error.of(f"prompt {index}")) from None
    return {"prompt_ids": [_packed(token_ids) for token_ids in prompt]}


def _tools_of(request: Conversation) -> list[dict[str, Any]]:
    """Return what the parser of calls needs of tools: names and schemas, or names alone where those are too long."""
    functions = [tool.function for tool in request.tools or ()]
    schemas = [each.model_dump_json(include={"name", "parameters", "strict"}, exclude_none=True) for each in functions]
    if sum(map(len, schemas)) > _MAX_SCHEMAS_LEN:
        return [{"type": "function", "function": {"name": each.name}} for each in functions]
    return [{"type": "function", "function": orjson.loads(schema)} for schema in schemas]


def _packed(token_ids: Sequence[int]) -> bytes:
    return array("i", token_ids).tobytes()


if __name__ == "__main__":
    os.nice(5)  # where cores are few, the event loop goes first
    answer_frames(read_long)
