"""Errors as Anthropic's API says them, made of OpenAI's error object."""

from __future__ import annotations

from typing import Any

import orjson

from baton.router.openai.refusals import ErrorForm

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def anthropic_error(error: dict[str, Any], status: int) -> dict[str, Any]:
    """Return the body of an error answer; the field that is wrong stands in its message."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    said: dict[str, Any] = {"type": kind, "message": error["error"]["message"]}
    if error["error"]["param"] == "thread":  # by which the SDK's tool runner goes on with whole conversations
        said["details"] = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    return {"type": "error", "error": said}


def _event(error: dict[str, Any], status: int) -> bytes:
    return b"event: error\ndata: " + orjson.dumps(anthropic_error(error, status)) + b"\n\n"


_TEXT = {"type": "string"}
_SCHEMA = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {"type": "object", "required": ["type", "message"], "properties": {"type": _TEXT, "message": _TEXT}},
    },
}

ANTHROPIC_FORM = ErrorForm(anthropic_error, _event, _SCHEMA)
