"""What of a request is refused, and how it is said: naming field, value, limit and the way out."""

from __future__ import annotations

from pydantic import ValidationError

from baton.errors import InvalidRequest, UnsupportedFeature

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


def refuse_validation(error: ValidationError) -> InvalidRequest:
    """Say the first thing that is wrong with a body."""
    first = error.errors(include_url=False, include_context=False)[0]
    field, kind = _path(first["loc"]), first["type"]
    wrong = f"{field}={show(first.get('input'))} is not valid"
    if kind == "json_invalid":
        return InvalidRequest(f"The body is not valid JSON: {first['msg']}.", code="invalid_json")
    if kind == "extra_forbidden":
        name = str(first["loc"][-1])
        if name in UNSERVED:
            return UnsupportedFeature(f"{wrong}: {UNSERVED[name]}.", field=field)
        message = f"{wrong}: there is no such parameter. Leave it out."
        return InvalidRequest(message, field=field, code="unknown_parameter")
    if kind == "missing":
        return InvalidRequest(f"{field} is missing. Give it.", field=field, code="missing_required_parameter")
    subject = wrong if field else "The body is not valid"
    return InvalidRequest(f"{subject}: {_limit(first['msg'])}.", field=field or None)


def show(value: object) -> str:
    """Return a value as short text; never fails, whatever was sent."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    text = repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def _limit(message: str) -> str:
    if message.startswith("Value error, "):
        return message.removeprefix("Value error, ")
    if message.startswith("Input should be "):
        return f"it must be {message.removeprefix('Input should be ')}"
    return message[:1].lower() + message[1:]


def _path(loc: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")
