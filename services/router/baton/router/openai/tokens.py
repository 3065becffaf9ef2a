"""POST /tokenize and /detokenize: text or messages to token ids, and back."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from baton.errors import InvalidRequest
from baton.router.json_response import JSON
from baton.router.openai.models import check_model
from baton.router.openai.requests import ChatRequest, DetokenizeRequest, TokenizeRequest
from baton.router.openapi_file import operation
from baton.router.request_body import read_body
from baton.router.router_state import RouterState


def token_routes(router: RouterState) -> APIRouter:
    """Serve the tokenizer."""
    routes = APIRouter()

    @routes.post("/tokenize", summary="Turn text or messages into token ids", **operation(TokenizeRequest))
    async def tokenize(http: Request) -> Response:
        body = await read_body(http, TokenizeRequest, router.config)
        check_model(router.config, body.model)
        token_ids = await _tokenize(router, body)
        facts = router.dispatcher.last_facts
        answer = {
            "count": len(token_ids),
            "max_model_len": None if facts is None else facts.max_model_len,
            "tokens": token_ids,
            "token_strs": [router.text.token_text(t) for t in token_ids] if body.return_token_strs else None,
        }
        return JSON(answer)

    @routes.post("/detokenize", summary="Turn token ids into text", **operation(DetokenizeRequest))
    async def detokenize(http: Request) -> Response:
        body = await read_body(http, DetokenizeRequest, router.config)
        check_model(router.config, body.model)
        size = router.tokenizer.vocab_size
        for token_id in body.tokens:
            if token_id >= size:
                raise InvalidRequest(
                    f"tokens={token_id} is not valid: token ids of this tokenizer are 0 to {size - 1}.", field="tokens"
                )
        return JSON({"prompt": await router.text.run(router.tokenizer.decode, body.tokens)})

    return routes


async def _tokenize(router: RouterState, body: TokenizeRequest) -> list[int]:
    if body.messages is None:
        return await router.text.encode(body.prompt or "", add_special_tokens=body.add_special_tokens is not False)
    chat = ChatRequest(
        messages=body.messages,
        tools=body.tools,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        chat_template_kwargs=body.chat_template_kwargs,
    )
    return await router.text.render_chat(**chat.for_template())
