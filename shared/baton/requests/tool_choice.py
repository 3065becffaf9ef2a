"""Calls that a request forces: which functions, and the form of an answer that consists of them.

As in vLLM the answer is JSON whatever the model's own way to write calls: a named function's is its arguments, that of
`required` a list of objects with name and parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from baton.errors import InvalidRequest, refuse
from baton.requests.tools import FunctionDefinition, Tool
from baton.structured_outputs import StructuredOutputs

_ANY_ARGUMENTS = {"type": "object"}


@dataclass(frozen=True, slots=True)
class ForcedCalls:
    """What must be called."""

    functions: Sequence[FunctionDefinition]
    is_named: bool
    """One function, once; otherwise one call at least, of any of them."""

    def form(self, *, one_call: bool) -> StructuredOutputs:
        """Return the form of the answer."""
        if self.is_named:
            (function,) = self.functions
            return StructuredOutputs(json=function.parameters or _ANY_ARGUMENTS)
        # each schema is kept whole under a name of its own, to which its references to itself are turned
        schemas = {str(i): each.parameters or _ANY_ARGUMENTS for i, each in enumerate(self.functions)}
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": each.name}, "parameters": {"$ref": f"#/$defs/{i}"}},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
            for i, each in enumerate(self.functions)
        ]
        limits = {"minItems": 1} | ({"maxItems": 1} if one_call else {})
        defs = {name: _moved(schema, f"#/$defs/{name}") for name, schema in schemas.items()}
        return StructuredOutputs(json={"type": "array", "items": {"anyOf": calls}, **limits, "$defs": defs})


def forced_calls(choice: Any, tools: Sequence[Tool]) -> ForcedCalls | None:
    """Read `tool_choice`; None where the model decides.

    Raises:
        InvalidRequest: it is no choice, or one of a function that is not offered.
    """
    if choice in (None, "auto", "none"):
        return None
    functions = {tool.function.name: tool.function for tool in tools}
    if choice == "required":
        names, is_named = list(functions), False
    else:
        names, is_named = _chosen(choice)
    if not functions:
        raise InvalidRequest(
            "tool_choice forces a call, and there are no tools. Send tools, or leave it out.", field="tool_choice"
        )
    for name in names:
        if name not in functions:
            known = ", ".join(list(functions)[:20])
            raise refuse("tool_choice", name, "no such function is in tools", f"Name one of them: {known}.")
    return ForcedCalls([functions[name] for name in names], is_named)


def _chosen(choice: Any) -> tuple[list[str], bool]:
    """Return the names in a choice that is an object, and whether it is of one function."""
    match choice:
        case {"type": "function", "function": {"name": str() as name}} | {"type": "function", "name": str() as name}:
            return [name], True
        case {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [*tools]}} if tools:
            return [name for tool in tools for name in _chosen(tool)[0]], False
        case {"type": "allowed_tools"}:
            limit = 'of allowed tools only those of the mode "required" can be held to'
            raise refuse("tool_choice", choice, limit, "Send only the tools that may be called.")
    limit = 'it must be none, auto, required, or {"type": "function", "function": {"name": ...}}'
    raise refuse("tool_choice", choice, limit)


def _moved(schema: Any, place: str) -> Any:
    """Return a schema with its references to itself turned to where it stands now."""
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: place + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else value
        if key in ("enum", "const", "default", "examples")
        else _moved(value, place)
        for key, value in schema.items()
    }
