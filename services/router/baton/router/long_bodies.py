"""LongBodies: bodies that would hold the event loop while they are read are read in a process beside it."""

from __future__ import annotations

import asyncio
from array import array
from typing import Any, TypeVar

import msgspec
import orjson
from pydantic import BaseModel

from baton.errors import ContextTooLong, InvalidRequest, QueueFull, UnsupportedFeature
from baton.logs import get_logger
from baton.messages import ModelFacts
from baton.requests.chat import ChatRequest
from baton.requests.conversation import Conversation
from baton.requests.pooling import PoolingRequest
from baton.requests.translated import Context, Translates
from baton.router.config import RouterConfig
from baton.router.helper_process import HelperDied, HelperPool, HelperTooSlow
from baton.router.text_pool import TextPool, rendered_text
from baton.template_files import ChatTemplates

INLINE_NBYTES = 2**16
"""Bodies up to here are read on the loop: the worst of them takes about 15 ms, most a tenth of one."""
_READ_S = 10.0
_MAX_WAITING = 64
"""Bodies that may wait to be read; each is held in memory."""
_KINDS: dict[str, type[InvalidRequest]] = {
    kind.__name__: kind for kind in (InvalidRequest, UnsupportedFeature, ContextTooLong)
}
_STANDS_IN = {
    "ChatRequest": {"messages": [{"role": "user", "content": ""}]},
    "CompletionRequest": {"prompt": "-"},
    "DetokenizeRequest": {"tokens": []},
}
"""For what is taken out of a request, where it must have some."""
_ANY_LEN = 2**31
_Model = TypeVar("_Model", bound=BaseModel)
_log = get_logger("long_bodies")


class LongBodies:
    """Reads long bodies, each in one of two processes that start with the first of them."""

    def __init__(self, config: RouterConfig, text: TextPool) -> None:
        self._config = config
        self._text = text
        self._readers = HelperPool("baton.router.read_long", 2)
        self._num_waiting = 0

    async def close(self) -> None:
        await self._readers.close()

    async def read(self, model: type[_Model], body: bytes, facts: ModelFacts | None) -> _Model:
        """Read and check a body; a conversation is rendered too.

        Raises:
            InvalidRequest: as if it were read here; or it takes too long.
            QueueFull: too many wait already.
        """
        return await _restored(model, await self._ask(self._job(model, body, facts), len(body)))

    async def translate(
        self, model: type[Translates], body: bytes, context: Context, facts: ModelFacts | None
    ) -> tuple[ChatRequest, bytes]:
        """Read the body of a route that answers by a chat; return that, rendered, and what is needed beside it.

        Raises:
            InvalidRequest, QueueFull: as `read`.
        """
        answer = await self._ask(self._job(model, body, facts, context), len(body) + context.nbytes)
        return await _restored(ChatRequest, answer), answer["kept"]

    async def _ask(self, job: bytes, nbytes: int) -> dict[str, Any]:
        if self._num_waiting >= _MAX_WAITING:
            raise QueueFull(f"{_MAX_WAITING} long bodies are waiting to be read. Try again in a second.")
        self._num_waiting += 1
        try:
            answer: dict[str, Any] = await self._readers.ask(job, _READ_S)
        except (HelperTooSlow, HelperDied) as error:
            _log.warning("body_not_read", nbytes=nbytes, reason=str(error))
            raise InvalidRequest(f"The body of {nbytes} bytes cannot be read: {error}. Send less.") from None
        finally:
            self._num_waiting -= 1
        if "refusal" in answer:
            raise _KINDS[answer["kind"]](answer["refusal"], field=answer["field"], code=answer["code"])
        return answer

    def _job(
        self, model: type[BaseModel], body: bytes, facts: ModelFacts | None, context: Context | None = None
    ) -> bytes:
        job: dict[str, Any] = {
            "model": model.__name__,
            "body": body,
            "limits": self._config.limits,
            "max_model_len": _ANY_LEN if facts is None else facts.max_model_len,
            "vocab_size": _ANY_LEN if facts is None else facts.vocab_size,
            "template": self._text.template_settings(),
            "trusts_templates": self._config.trust_request_chat_template,
        }
        if context is not None:
            job["context"] = msgspec.msgpack.encode(context)
        if issubclass(model, (Conversation, Translates)):
            job["templates"] = [_source(self._text.tokenizer.chat_templates, has_tools) for has_tools in (False, True)]
        return msgspec.msgpack.encode(job)


def _source(templates: ChatTemplates, has_tools: bool) -> tuple[str, str]:
    """Return the template that renders such conversations, or else why there is none."""
    try:
        return templates.source(with_tools=has_tools), ""
    except InvalidRequest as error:
        return "", str(error)


async def _restored(model: type[_Model], answer: dict[str, Any]) -> _Model:
    """Make the request again of what is left of it, with what was long as the router takes it."""
    fields = orjson.loads(answer["request"]) | answer.get("beside", {})
    request: Any
    if "rendered" in answer:
        text = rendered_text(answer["rendered"])
        request = model.model_validate_json(orjson.dumps(fields | _STANDS_IN["ChatRequest"]))
        request.with_text(text)
        if "echoed" in answer:
            request.with_echo(answer["echoed"])
        return request  # type: ignore[no-any-return]
    if issubclass(model, PoolingRequest):
        stand_ins = dict.fromkeys(model.long, "-") | ({"documents": ["-"]} if "documents" in model.long else {})
        request = model.model_validate_json(orjson.dumps(fields | stand_ins))
        for name, value in answer.get("long", {}).items():
            setattr(request, name, value)
        for name, lists in answer.get("packed", {}).items():
            setattr(request, name, [array("i", packed).tolist() for packed in lists])
        return request  # type: ignore[no-any-return]
    request = model.model_validate_json(orjson.dumps(fields | _STANDS_IN.get(model.__name__, {"prompt": ""})))
    if "prompt" in answer:
        request.prompt = answer["prompt"]
    elif "tokens" in answer:
        request.tokens = array("i", answer["tokens"]).tolist()
    else:
        request.prompt = []
        for packed in answer["prompt_ids"]:
            request.prompt.append(array("i", packed).tolist())
            await asyncio.sleep(0)  # there may be many: others have their turn between
    return request  # type: ignore[no-any-return]
