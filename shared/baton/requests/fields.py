"""Types of fields, with their ranges, so that they are in the OpenAPI file too."""

from __future__ import annotations

from functools import reduce
from itertools import takewhile
from operator import or_
from typing import Annotated, Any, cast

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    FailFast,
    Field,
    PlainValidator,
    Tag,
    WithJsonSchema,
)

from baton.protocol import MAX_LIST

INT31 = 2**31 - 1


class FirstError(FailFast):
    """A list that ends at its first wrong entry: telling of a million takes tens of seconds."""

    __hash__ = object.__hash__  # a member of a union has one


def _whole(value: Any) -> Any:
    """Take 5.0 for 5: languages that know one kind of number write it so."""
    return int(value) if type(value) is float and value.is_integer() else value


Whole = BeforeValidator(_whole)
Finite = Annotated[float, Field(allow_inf_nan=False)]
NumScores = Annotated[int, Field(ge=-1, le=INT31), Whole]
"""Log-probabilities a position, beside the token's own; -1: all. What is allowed, a router's limits say."""
TokenId = Annotated[int, Field(ge=0, le=INT31)]
TokenIds = Annotated[list[Annotated[TokenId, Whole]], Field(max_length=MAX_LIST), FirstError()]


def _check_words(words: list[str]) -> list[str]:
    if sum(map(len, words)) > _MAX_WORDS_LEN:
        raise ValueError(f"at most {_MAX_WORDS_LEN} characters are taken in all")
    return words


_MAX_WORDS_LEN = 32_768
"""Of all bad words: each is spelled as tokens, twice, which every step looks for."""
Words = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=1024)]],
    Field(max_length=MAX_LIST),
    FirstError(),
    AfterValidator(_check_words),
]


def one_of(branches: dict[type, Any], words: str) -> Any:
    """Return a union whose errors are those of the branch that was meant: the one of the value's JSON type.

    `words` say what is taken where no branch is meant.
    """

    def branch_of(value: Any) -> str | None:
        return next((f"({kind.__name__})" for kind in branches if isinstance(value, kind)), None)

    tagged = [Annotated[branch, Tag(f"({kind.__name__})")] for kind, branch in branches.items()]
    return Annotated[reduce(or_, tagged), Discriminator(branch_of, "branch", f"it must be {words}")]


TextOrObject = one_of({str: str, dict: dict[str, Any]}, "a string or an object")


def _check_stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, (list, tuple)) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ValueError("it must be a string or a list of strings, none empty")
    if len(stops) > MAX_LIST or any(len(stop) > 1024 for stop in stops):
        raise ValueError(f"at most {MAX_LIST} strings of at most 1024 characters are taken")
    return tuple(stops)


Stop = Annotated[
    tuple[str, ...],
    PlainValidator(_check_stop),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": 1024},
                {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 1024}, "maxItems": MAX_LIST},
            ]
        }
    ),
]


def _check_logit_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict) or len(value) > MAX_LIST:
        raise ValueError(f"it must be an object of at most {MAX_LIST} token ids")
    bias: dict[int, float] = {}
    for given, number in value.items():
        key = str(given) if type(given) is int else given  # of a request that was checked before
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10):
            raise ValueError(f"its keys must be token ids, and {str(key)[:20]!r} is none")
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
        if isinstance(value[0], str) and all(isinstance(item, str) for item in value):
            return value
        if isinstance(value[0], list):
            prompts = list(takewhile(bool, map(_token_ids, value)))
            if len(prompts) == len(value):
                return cast(list[list[int]], prompts)
        elif (ids := _token_ids(value)) is not None:
            return [ids]
    raise ValueError("it must be a text, a list of token ids, or a list of either, none empty")


def _token_ids(value: Any) -> list[int] | None:
    """Return a list of whole numbers; None for what is none."""
    if not isinstance(value, list):
        return None
    if set(map(type, value)) <= {int}:  # not a loop: it may be a million
        return value
    whole = [_whole(item) for item in value]
    return whole if set(map(type, whole)) <= {int} else None


_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": INT31}, "minItems": 1}
Prompt = Annotated[
    Prompts,
    PlainValidator(_check_prompt),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                _IDS_SCHEMA,
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                {"type": "array", "items": _IDS_SCHEMA, "minItems": 1},
            ]
        }
    ),
]
