"""Values that a model writes as bare text, as JSON of the type that the function's schema gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import orjson

from baton.router.openai.parsers.json_calls import is_json

_WORDS = {"true": "true", "false": "false", "null": "null", "none": "null"}
_MAX_CHOICES = 32


def typed_value(text: str, schema: Mapping[str, Any] | None) -> str:
    """Return a value as JSON. What does not fit its type stays a string; without a type, what is JSON is taken as such."""
    types = _types(schema, _MAX_CHOICES) if isinstance(schema, Mapping) else set()
    bare = text.strip()
    word = _WORDS.get(bare.lower())
    if word == "null" and "null" in types:
        return word
    if "string" in types and types <= {"string", "null"}:
        return _string(text)
    if word is not None and (not types or ("boolean" if word != "null" else "null") in types):
        return word
    if is_json(bare) and (not types or _type_of(bare) in types):
        return bare
    return _string(text)


def _type_of(value: str) -> str:
    kinds = {"{": "object", "[": "array", '"': "string", "t": "boolean", "f": "boolean", "n": "null"}
    return kinds.get(value[0], "number")


def _types(schema: Mapping[str, Any], room: int) -> set[str]:
    """Return the types that a schema allows, as far as it says them plainly; each kind of number is one."""
    named = schema.get("type")
    types = {each for each in (named if isinstance(named, list) else [named]) if isinstance(each, str)}
    for key in ("anyOf", "oneOf", "allOf"):
        choices = schema.get(key)
        for choice in choices[:room] if isinstance(choices, list) else ():
            if isinstance(choice, Mapping) and room > 1:
                types |= _types(choice, room // 2)
    values = schema.get("enum")
    if not types and isinstance(values, list):
        types = {_type_of(msgspec.json.encode(value).decode()) for value in values[:_MAX_CHOICES]}
    return {"number" if each == "integer" else each for each in types}


def _string(text: str) -> str:
    return orjson.dumps(text).decode()
