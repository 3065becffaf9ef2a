"""The tables of conformance: what becomes of each field of OpenAI's and vLLM's requests."""

from __future__ import annotations

import json

from docs.markdown import rows
from tests.conformance.fields import ELSEWHERE, ROUTES, Route


def conformance_table(path: str) -> str:
    """Return one route's fields."""
    (route,) = (each for each in ROUTES if each.path == path)
    named = sorted(route.openai_fields() | route.vllm_fields())
    return rows(
        ("field", "of", "what becomes of it"), [(f"`{name}`", _of(route, name), _what(route, name)) for name in named]
    )


def _of(route: Route, name: str) -> str:
    owners = (("OpenAI", route.openai_fields()), ("vLLM", route.vllm_fields()))
    return ", ".join(owner for owner, fields in owners if name in fields)


def _what(route: Route, name: str) -> str:
    what = route.what(name)
    if what == "honoured":
        return f"honoured, {ELSEWHERE[name]}" if name in ELSEWHERE else "honoured"
    if what == "without effect":
        return "taken, without effect"
    unserved = route.model.unserved[name]
    neutral = " or ".join(f"`{json.dumps(value)}`" for value in unserved.neutral)
    return f"only {neutral}: {unserved.reason}" if neutral else f"refused: {unserved.reason}"
