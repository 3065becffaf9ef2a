"""ResponseFrame: OpenAI's response object around an answer's items, as JSON."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from typing import Any

import orjson

from baton.errors import BatonError, InvalidRequest
from baton.requests.responses import Kept
from baton.router.openai.open_request import Tally

_NULL = dict.fromkeys(
    (
        *("access_programs", "conversation", "image", "input_transformations", "moderation", "prompt"),
        *("prompt_cache_diagnostics", "prompt_cache_options", "prompt_cache_retention", "tool_usage"),
    )
)
"""What OpenAI's object has beside, for clients that look for it."""


def new_response_id() -> str:
    """Make the id of a response; those of its items are made of it."""
    return f"resp_{uuid.uuid4().hex}"


class ResponseFrame:
    """What stays the same of a response from its first event to its last."""

    def __init__(
        self, response_id: str, model: str, kept: Kept, *, store: bool, temperature: float, top_p: float
    ) -> None:
        self.response_id = response_id
        self.name = response_id.removeprefix("resp_")
        self.created_at = int(time.time())
        head = {"id": response_id, "object": "response", "created_at": self.created_at, "model": model}
        same: dict[str, Any] = {
            "background": kept.background,
            "previous_response_id": kept.previous_response_id,
            "service_tier": "default",
            "store": store,
            "temperature": temperature,
            "top_p": top_p,
            **_NULL,
        }
        self._head = orjson.dumps(head)[:-1]
        self._tail = orjson.dumps(same)[1:-1] + b"," + kept.echo

    def write(
        self,
        status: str,
        output: Iterable[bytes] = (),
        *,
        usage: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
    ) -> bytes:
        """Return the object; `output` are its items."""
        varying = {
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "usage": usage,
        }
        return b'%b,%b,"output":[%b],%b}' % (self._head, orjson.dumps(varying)[1:-1], b",".join(output), self._tail)


def response_usage(tally: Tally, num_reasoning: int) -> dict[str, Any]:
    """Return OpenAI's usage object of a response."""
    usage: dict[str, Any] = tally.usage()
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            "cache_write_tokens": 0,
        },
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": num_reasoning},
        "total_tokens": usage["total_tokens"],
    }


def response_error(error: BatonError) -> dict[str, Any]:
    """Return why a response failed, in the words that OpenAI has for it."""
    code = "rate_limit_exceeded" if error.status == 429 else "server_error"
    return {"code": "invalid_prompt" if isinstance(error, InvalidRequest) else code, "message": str(error)}
