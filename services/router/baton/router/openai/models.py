"""What is asked of a model beside answers: its names, and its tokenizer."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from baton.errors import InvalidRequest, refuse
from baton.requests.tokenize import DetokenizeRequest, TokenizeRequest
from baton.router.http_request import read_body
from baton.router.json_answers import JSON, LongJSON
from baton.router.openai.json_pieces import list_pieces, object_pieces
from baton.router.openapi_file import errors, operation
from baton.router.router_state import RouterState
from baton.text import Tokenizer

_NAMES = 1024
"""Names of tokens that are looked up at once."""


class UnknownModel(InvalidRequest):
    """The request names a model that is not served."""

    status = 404


def model_routes(router: RouterState) -> APIRouter:
    routes = APIRouter()

    @routes.get("/v1/models", summary="Name the models that are served")
    async def models() -> Response:
        return JSON({"object": "list", "data": [_card(router, name) for name in router.model_names]})

    @routes.get("/v1/models/{name:path}", summary="Describe one model", responses=errors(404))
    async def model(name: str) -> Response:
        return JSON(_card(router, check_model(router, name)))

    @routes.post("/tokenize", summary="Turn text or messages into token ids", **operation(TokenizeRequest))
    async def tokenize(http: Request) -> Response:
        body = await read_body(http, TokenizeRequest, router)
        check_model(router, body.model)
        if body.messages is None:
            add = body.add_special_tokens is not False
            token_ids = await router.text.encode(body.prompt or "", add_special_tokens=add)
        else:
            add = bool(body.add_special_tokens)  # which templates write themselves
            token_ids = await router.text.chat_ids(body, add_special_tokens=add)
        facts = router.dispatcher.last_facts
        short = {"count": len(token_ids), "max_model_len": None if facts is None else facts.max_model_len}
        named = token_ids if body.return_token_strs else None
        names = list_pieces(named, lambda some: list(map(router.tokenizer.token, some)), _NAMES)
        return LongJSON(object_pieces(short, {"tokens": list_pieces(token_ids), "token_strs": names}), router.turns)

    @routes.post("/detokenize", summary="Turn token ids into text", **operation(DetokenizeRequest))
    async def detokenize(http: Request) -> Response:
        body = await read_body(http, DetokenizeRequest, router)
        check_model(router, body.model)
        return JSON({"prompt": await router.text.run(_decode, router.tokenizer, body.tokens)})

    if router.config.enable_tokenizer_info_endpoint:

        @routes.get("/tokenizer_info", summary="Show the tokenizer's settings")
        async def tokenizer_info() -> Response:
            return JSON(router.tokenizer.info())

    return routes


def _decode(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    """Return the text of token ids; in a thread, as both may be long."""
    size = tokenizer.vocab_size
    for token_id in token_ids:
        if token_id >= size:
            raise refuse("tokens", token_id, f"token ids of this tokenizer are 0 to {size - 1}")
    return tokenizer.decode(token_ids, skip_special_tokens=False)


def check_model(router: RouterState, name: str | None) -> str:
    """Return the name to answer under.

    Raises:
        UnknownModel: no such model is served here.
    """
    names = router.model_names
    if name is None:
        return names[0]
    if name not in names:
        raise UnknownModel(
            f"model={name[:80]!r} is not valid: served here: {', '.join(names)}.", field="model", code="model_not_found"
        )
    return name


def _card(router: RouterState, name: str) -> dict[str, Any]:
    facts = router.dispatcher.last_facts
    return {
        "id": name,
        "object": "model",
        "created": router.started_at,
        "owned_by": "baton",
        "root": name,
        "parent": None,
        "max_model_len": None if facts is None else facts.max_model_len,
        "default_sampling_params": router.sampling_defaults,
    }
