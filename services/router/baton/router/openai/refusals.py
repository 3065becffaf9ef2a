"""What is refused, and how it is said: one error object, naming field, value, limit and the way out."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from baton.errors import BatonError, InvalidRequest, UnsupportedFeature

UNSERVED: dict[str, str] = {
    "audio": "audio is not served; only text is",
    "prediction": "predicted outputs are not served",
    "web_search_options": "web search is not served",
    "functions": "it is deprecated; use tools",
    "function_call": "it is deprecated; use tool_choice",
    "prompt_embeds": "prompts are text or token ids",
    "use_beam_search": "beam search is not served; use n",
    "length_penalty": "beam search is not served",
    "chat_template": "templates come with the model only",
    "verbosity": "no model served here knows it",
    "suffix": "infilling is not served",
    "truncate_prompt_tokens": "a prompt is never rewritten; send the part that you want",
    "kv_transfer_params": "where KV comes from is not the client's to say",
    "mm_processor_kwargs": "only text is served",
    "media_io_kwargs": "only text is served",
    "verbosity_level": "no model served here knows it",
    **dict.fromkeys(
        ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
        "structured outputs are not served by this build",
    ),
}
"""Fields that other servers know, with the reason why a request with one is refused."""

_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_type(status: int) -> str:
    """Return OpenAI's word for a status."""
    if status in _TYPES:
        return _TYPES[status]
    return "invalid_request_error" if status < 500 else "server_error"


def error_object(message: str, status: int, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return the body of an error answer."""
    return {"error": {"message": message, "type": error_type(status), "param": param, "code": code}}


def error_of(error: BatonError) -> dict[str, Any]:
    """Return the error object of one of our errors."""
    field = error.field if isinstance(error, InvalidRequest) else None
    code = error.code if isinstance(error, InvalidRequest) else None
    if isinstance(error, UnsupportedFeature) and code is None:
        code = "unsupported_parameter"
    return error_object(str(error), error.status, param=field, code=code)


def failure_object(public_id: str) -> dict[str, Any]:
    """Say that a mistake of ours ended a request."""
    return error_object(f"The router failed. The log has the reason under {public_id}.", 500)


def refuse_validation(error: ValidationError) -> InvalidRequest:
    """Say the first thing that is wrong with a body."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = _path(first["loc"])
    kind, value = first["type"], first.get("input")
    if kind == "json_invalid":
        return InvalidRequest(f"The body is not valid JSON: {first['msg']}.", code="invalid_json")
    if kind == "extra_forbidden":
        name = str(first["loc"][-1])
        if name in UNSERVED:
            return UnsupportedFeature(f"{field}={show(value)} is not valid: {UNSERVED[name]}.", field=field)
        return InvalidRequest(
            f"{field}={show(value)} is not valid: there is no such parameter. Leave it out.",
            field=field,
            code="unknown_parameter",
        )
    if kind == "missing":
        return InvalidRequest(f"{field} is missing. Give it.", field=field, code="missing_required_parameter")
    if not field:
        return InvalidRequest(f"The body is not valid: {_limit(first['msg'])}.")
    return InvalidRequest(f"{field}={show(value)} is not valid: {_limit(first['msg'])}.", field=field)


def show(value: object) -> str:
    """Return a value as short text; never fails, whatever was sent."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str):
        value = value[:80]
    if isinstance(value, (list, dict)):
        return f"a list of {len(value)}" if isinstance(value, list) else f"an object of {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _limit(message: str) -> str:
    for prefix in ("Value error, ", "Input should be "):
        if message.startswith(prefix):
            rest = message.removeprefix(prefix)
            return rest if prefix == "Value error, " else f"it must be {rest}"
    return message[:1].lower() + message[1:]


def _path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path
