"""The one error object that answers whatever failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from baton.errors import BatonError, InvalidRequest, UnsupportedFeature

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""OpenAI's words for statuses with one of their own."""


def error_object(message: str, status: int, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return the body of an error answer."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_of(error: BatonError) -> dict[str, Any]:
    """Return the error object of one of our errors."""
    if not isinstance(error, InvalidRequest):
        return error_object(str(error), error.status)
    code = error.code or ("unsupported_parameter" if isinstance(error, UnsupportedFeature) else None)
    return error_object(str(error), error.status, param=error.field, code=code)


def failure_object(public_id: str) -> dict[str, Any]:
    """Say that a mistake of ours ended a request."""
    return error_object(f"The router failed. The log has the reason under {public_id}.", 500)


class ErrorForm(NamedTuple):
    """How an API says an error object with its status: as an answer of its own, and in the middle of a stream."""

    body: Callable[[dict[str, Any], int], dict[str, Any]]
    event: Callable[[dict[str, Any], int], bytes]
    schema: dict[str, Any]
    """Of a body, in JSON Schema."""


def _event(error: dict[str, Any], _status: int) -> bytes:
    """Write an error in the middle of a stream; SDKs raise it. No [DONE] follows."""
    return b"data: " + orjson.dumps(error) + b"\n\n"


_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL},
        }
    },
}

OPENAI_FORM = ErrorForm(lambda error, _status: error, _event, _SCHEMA)
