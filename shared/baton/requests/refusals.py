"""What of a request is refused, and how it is said: naming field, value, limit and the way out."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from baton.errors import InvalidRequest, refuse

_Model = TypeVar("_Model", bound=BaseModel)


def read_json(model: type[_Model], body: bytes) -> _Model:
    """Check a body.

    Raises:
        InvalidRequest: it is not JSON, or not what the model takes.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise refuse_validation(error) from None
    except (RecursionError, ValueError) as error:
        raise InvalidRequest(f"The body is not valid: {type(error).__name__}.") from None


def read_value(model: type[_Model], value: Any) -> _Model:
    """Check a Python value as a body is checked.

    Raises:
        InvalidRequest: it is not what the model takes.
    """
    _check_texts(value, ())
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise refuse_validation(error) from None


def _check_texts(value: Any, loc: tuple[int | str, ...]) -> None:
    """Refuse strings that are no text, which JSON cannot hold and no tokenizer takes."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise refuse(_path(loc), value, "it holds half of a surrogate pair, which is no text") from None
    elif isinstance(value, dict):
        for key, each in value.items():
            _check_texts(each, (*loc, str(key)))
    elif isinstance(value, list) and loc != ("prompt_token_ids",):  # which may be a million numbers
        for index, each in enumerate(value):
            _check_texts(each, (*loc, index))


def refuse_validation(error: ValidationError) -> InvalidRequest:
    """Say the first thing that is wrong with a body."""
    first = error.errors(include_url=False)[0]
    loc, kind = first["loc"], first["type"]
    field, cause = _path(loc), first.get("ctx", {}).get("error")
    if isinstance(cause, InvalidRequest):
        return _at(_path(loc[:-1]) if loc[-1:] == (cause.field,) else field, cause)
    if kind == "json_invalid":
        return InvalidRequest(f"The body is not valid JSON: {first['msg']}.", code="invalid_json")
    if kind == "missing":
        return InvalidRequest(f"{field} is missing. Give it.", field=field, code="missing_required_parameter")
    if not field:
        return InvalidRequest(f"The body is not valid: {_limit(first['msg'])}.")
    return refuse(field, first.get("input"), _limit(first["msg"]))


def _at(place: str, error: InvalidRequest) -> InvalidRequest:
    """Say an error of a part, whose message begins with its field, as one of the whole."""
    dot = "." if place and error.field else ""
    return type(error)(f"{place}{dot}{error}", field=f"{place}{dot}{error.field or ''}" or None, code=error.code)


def _limit(message: str) -> str:
    if message.startswith("Value error, "):
        return message.removeprefix("Value error, ")
    if message.startswith("Input should be "):
        return f"it must be {message.removeprefix('Input should be ')}"
    return message[:1].lower() + message[1:]


def _path(loc: tuple[int | str, ...]) -> str:
    """Write a place; names of a union's branches, which are in brackets, are no part of it."""
    parts = [part for part in loc if isinstance(part, int) or not part.startswith("(")]
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")
