"""Calls as Python, as formats of a structural tag: `f(a=1, b="x")`, arguments in the order of the schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baton.tag_grammars import in_sequence, may_be

_NAME = {"type": "regex", "pattern": "[A-Za-z_][A-Za-z0-9_]{0,63}"}
_WORDS = ("True", "False")


def python_call(name: str, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the tag of a call; without a schema it has any arguments by name. Values are written as JSON, or True, False."""
    if parameters is None:
        argument = in_sequence(_NAME, "=", {"type": "json_schema", "json_schema": {}})
        more = {"type": "star", "content": in_sequence(", ", argument)}
        content = may_be(in_sequence(argument, more))
    else:
        content = _arguments(parameters)
    return {"type": "tag", "begin": f"{name}(", "content": content, "end": ")"}


def _arguments(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with commas between those that are there: first all, then as if one had come."""
    properties, required = schema.get("properties") or {}, schema.get("required") or ()
    beside = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    written = [(in_sequence(f"{key}=", _value(value, beside)), key in required) for key, value in properties.items()]
    choices = []
    for first, (argument, is_required) in enumerate(written):
        rest = [
            behind if needed else may_be(behind)
            for behind, needed in ((in_sequence(", ", each), needed) for each, needed in written[first + 1 :])
        ]
        choices.append(in_sequence(argument, *rest))
        if is_required:
            return {"type": "or", "elements": choices}
    return {"type": "or", "elements": [*choices, in_sequence("")]}


def _value(schema: Any, beside: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(schema, dict):
        return {"type": "json_schema", "json_schema": schema}
    if schema.get("type") == "boolean":
        return {"type": "or", "elements": [{"type": "const_string", "value": word} for word in _WORDS]}
    return {"type": "json_schema", "json_schema": {**schema, **beside}}
