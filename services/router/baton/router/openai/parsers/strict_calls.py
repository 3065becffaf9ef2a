"""Strict functions: a form in which text is free, and a call, once it begins, is one of those offered, with valid arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from baton.requests.tools import FunctionDefinition
from baton.structured_outputs import StructuredOutputs

_HERMES = ("<tool_call>", '\n{"name": %s, "arguments": ', "}\n</tool_call>")
STRICT_FORMS: Mapping[str, tuple[str, str, str]] = {
    **dict.fromkeys(("hermes", "granite4", "ernie45"), _HERMES),
    "longcat": ("<longcat_tool_call>", '{"name": %s, "arguments": ', "}</longcat_tool_call>"),
}
"""Of families whose calls are JSON between tags that are text: what begins a call, what stands up to its arguments, and
behind them."""
_ANY_ARGUMENTS = {"type": "object"}


def strict_form(family: str, functions: Sequence[FunctionDefinition]) -> StructuredOutputs | None:
    """Return the form of answers with functions of which one is strict; None if none is, or the family has no such form."""
    if family not in STRICT_FORMS or not any(function.strict for function in functions):
        return None
    trigger, head, end = STRICT_FORMS[family]
    structures = [
        {
            "begin": trigger + head % json.dumps(each.name, ensure_ascii=False),
            "schema": (each.parameters if each.strict else None) or _ANY_ARGUMENTS,
            "end": end,
        }
        for each in functions
    ]
    return StructuredOutputs(structural_tag={"structures": structures, "triggers": [trigger]})
