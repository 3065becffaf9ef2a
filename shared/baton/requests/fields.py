"""Types of fields, with their ranges, so that they are in the OpenAPI file too."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainValidator, WithJsonSchema

from baton.protocol import MAX_LIST, MAX_STOP

MAX_PROMPTS = 64
"""Prompts of one completions request."""
INT31 = 2**31 - 1

Finite = Annotated[float, Field(allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, le=INT31)]
TokenIds = Annotated[list[TokenId], Field(max_length=MAX_LIST)]
Words = Annotated[list[Annotated[str, Field(min_length=1, max_length=1024)]], Field(max_length=MAX_LIST)]


def _check_stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ValueError("it must be a string or a list of strings, none empty")
    if len(stops) > MAX_STOP or any(len(stop) > 1024 for stop in stops):
        raise ValueError(f"at most {MAX_STOP} strings of at most 1024 characters are taken")
    return tuple(stops)


Stop = Annotated[
    tuple[str, ...],
    PlainValidator(_check_stop),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": 1024},
                {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 1024}, "maxItems": MAX_STOP},
            ]
        }
    ),
]


def _check_logit_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict) or len(value) > MAX_LIST:
        raise ValueError(f"it must be an object of at most {MAX_LIST} token ids")
    bias: dict[int, float] = {}
    for key, number in value.items():
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10):
            raise ValueError(f"its keys must be token ids, and {key[:20]!r} is none")
        if not isinstance(number, (int, float)) or isinstance(number, bool) or not -100 <= number <= 100:
            raise ValueError("its values must be numbers from -100 to 100")
        bias[int(key)] = float(number)
    return bias


LogitBias = Annotated[
    dict[int, float],
    PlainValidator(_check_logit_bias),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "maxProperties": MAX_LIST,
        }
    ),
]

Prompts = list[str] | list[list[int]]


def _check_prompt(value: Any) -> Prompts:
    """Return a list of prompts, all texts or all token ids."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(type(item) is int for item in value):
            return [value]
        if len(value) > MAX_PROMPTS:
            raise ValueError(f"at most {MAX_PROMPTS} prompts are taken at once")
        if all(isinstance(item, str) for item in value):
            return value
        if all(isinstance(item, list) and item and all(type(t) is int for t in item) for item in value):
            return value
    raise ValueError("it must be a text, a list of token ids, or a list of either, none empty")


_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": INT31}, "minItems": 1}
Prompt = Annotated[
    Prompts,
    PlainValidator(_check_prompt),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                _IDS_SCHEMA,
                {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_PROMPTS},
                {"type": "array", "items": _IDS_SCHEMA, "minItems": 1, "maxItems": MAX_PROMPTS},
            ]
        }
    ),
]
