"""Tables of the API: routes, fields of bodies, what is refused, all from the models that check requests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from docs.api_words import WORDS
from docs.markdown import rows

from baton.config import demo_model_path
from baton.requests.anthropic import MESSAGES, OTHER_BLOCKS
from baton.requests.response_items import OTHER_ITEMS
from baton.requests.responses import OTHER_TOOLS, RESPONSE, SHARED
from baton.requests.sampling import Ignored
from baton.requests.unserved import CALL, CHAT, COMPLETION, FUNCTION, MESSAGE, PART, SENT_BACK, TOOL
from baton.router.app import make_api
from baton.router.auth import ADMIN_PATHS
from baton.router.config import RouterConfig
from baton.router.openapi_file import openapi_document
from baton.router.router_state import RouterState

POOLED = {
    "EmbeddingRequest": "/v1/embeddings",
    "PoolRequest": "/pooling",
    "ClassifyRequest": "/classify",
    "ScoreRequest": "/v1/score",
    "RerankRequest": "/v1/rerank",
}
"""Requests that generate nothing, and their paths."""
REQUESTS = ("ChatRequest", "CompletionRequest", "TokenizeRequest", "DetokenizeRequest", "BatchRequest", *POOLED)
OTHERS = {
    "ResponsesRequest": (RESPONSE, {"items": OTHER_ITEMS, "tools": OTHER_TOOLS}),
    "MessagesRequest": (MESSAGES, {"content blocks": OTHER_BLOCKS}),
}
"""Requests with a page of their own: what they refuse, and which types of what."""
_IGNORED = Ignored.model_fields.keys()


def routes_table() -> str:
    """Return every route with its methods and what it is for."""
    paths = _document()["paths"]
    lines = [
        (f"{method.upper()} `{path}`", operation.get("summary", ""), _key_of(path, operation))
        for path, operations in sorted(paths.items())
        for method, operation in operations.items()
    ]
    return rows(("route", "", "needs a key, where keys are set"), lines)


def _key_of(path: str, operation: dict[str, Any]) -> str:
    if path in ADMIN_PATHS:
        return "`--admin-api-key`, without which it is off"
    return "yes" if operation.get("security") else ""


def bodies() -> str:
    """Return a table of fields for each request, and for each object in one."""
    schemas = _document()["components"]["schemas"]
    chat, completions, *others = (schemas[name] for name in REQUESTS[:5])
    pooled = {name: schemas[name] for name in POOLED}
    first, *rest = pooled.values()
    alike = {n: f for n, f in first["properties"].items() if all(each["properties"].get(n) == f for each in rest)}
    shared = {n: f for n, f in chat["properties"].items() if completions["properties"].get(n) == f}
    ignored = {name: field for name, field in shared.items() if name in _IGNORED}
    named = ", ".join(f"`{name}`" for name in sorted(ignored))
    sections = [
        ("Chat: `POST /v1/chat/completions`", _fields(chat, without=shared)),
        ("Completions: `POST /v1/completions`", _fields(completions, without=shared)),
        ("Of both", _fields({**chat, "title": "", "properties": shared}, without=ignored)),
        ("Taken without effect", f"OpenAI's fields that ask for nothing which could fail to be done: {named}."),
        *zip(("`POST /tokenize`", "`POST /detokenize`", "`POST /v1/batches`"), map(_fields, others), strict=True),
        *((f"`POST {POOLED[name]}`", _fields(each, without=alike)) for name, each in pooled.items()),
        ("Of requests that generate nothing", _fields({**first, "properties": alike})),
        *((name, _about(schemas[name]) + _fields(schemas[name])) for name in _inner(schemas)),
    ]
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in sections)


def refused_table() -> str:
    """Return the fields that are known and not served, with the reason."""
    places = {"a message": MESSAGE, "a part of a message": PART, "a tool": TOOL, "a function": FUNCTION, "a call": CALL}
    lines = []
    for place, fields in {"": CHAT | COMPLETION, **places}.items():
        for name, (reason, neutral) in sorted(fields.items()):
            taken = ", ".join(f"`{json.dumps(value)}`" for value in neutral)
            lines.append((f"`{name}`" + (f" of {place}" if place else ""), reason, taken))
    sent_back = ", ".join(f"`{name}`" for name in sorted(SENT_BACK))
    return (
        rows(("field", "why it is refused", "taken, beside null, since it asks for nothing"), lines)
        + f"\n\nIgnored beside the keys of messages, parts, tools and calls: {sent_back}."
    )


def request_table(name: str) -> str:
    """Return the fields of a request that has a page of its own, and those of each object in it."""
    schemas = _document()["components"]["schemas"]
    sections = [_fields(schemas[name], without=SHARED if name == "ResponsesRequest" else ())]
    inner: list[str] = []
    _collect(schemas, schemas[name], inner)
    for each in inner:
        sections.append(f"### {each}\n\n{_about(schemas[each])}{_fields(schemas[each])}")
    return "\n\n".join(sections)


def refused_of(name: str) -> str:
    """Return what a request with a page of its own does not take, with the reason."""
    fields, types = OTHERS[name]
    lines = [
        (f"`{field}`", reason, ", ".join(f"`{json.dumps(value)}`" for value in neutral))
        for field, (reason, neutral) in sorted(fields.items())
        if name != "ResponsesRequest" or CHAT.get(field) != (reason, neutral)
    ]
    for what, reasons in types.items():
        for reason in dict.fromkeys(reasons.values()):
            named = ", ".join(f"`{kind}`" for kind in reasons if reasons[kind] == reason)
            lines.append((f"{what} of the type {named}", reason, ""))
    return rows(("field", "why it is refused", "taken, beside null, since it asks for nothing"), lines)


def described_fields() -> Iterator[tuple[str, str]]:
    """Return each model and field of the API, as `WORDS` names them."""
    schemas = _document()["components"]["schemas"]
    others: list[str] = []
    for name in OTHERS:
        _collect(schemas, schemas[name], others)
    for model in dict.fromkeys((*REQUESTS, *_inner(schemas), *OTHERS, *others)):
        names = schemas[model]["properties"]
        own = {name for name in names if model in POOLED or model in OTHERS or f"{model}.{name}" in WORDS}
        yield from ((model, name) for name in names if name not in _IGNORED or name in own)


def words(model: str, name: str) -> str:
    """Say what a field means."""
    return WORDS.get(f"{model}.{name}") or WORDS.get(name, "")


@cache
def _document() -> dict[str, Any]:
    return openapi_document(make_api(RouterState(RouterConfig(model=str(demo_model_path())))))


def _fields(model: dict[str, Any], without: Iterable[str] = ()) -> str:
    required = model.get("required", ())
    lines = []
    for name, field in model["properties"].items():
        if name not in without:
            kind = _kind(field) + (", required" if name in required else "")
            lines.append((f"`{name}`", kind, words(model["title"], name)))
    return rows(("field", "", ""), lines)


def _about(model: dict[str, Any]) -> str:
    text = model.get("description", "").partition("\n\n")[0]
    return f"{text}\n\n" if text else ""


def _inner(schemas: dict[str, Any]) -> list[str]:
    """Name the objects inside requests, in the order in which a reader meets them."""
    found: list[str] = []
    for name in REQUESTS:
        _collect(schemas, schemas[name], found)
    return found


def _collect(schemas: dict[str, Any], part: Any, found: list[str]) -> None:
    if isinstance(part, list):
        for each in part:
            _collect(schemas, each, found)
    elif isinstance(part, dict):
        name = str(part.get("$ref", "")).rpartition("/")[2]
        if name and name not in found:
            found.append(name)
            _collect(schemas, schemas[name], found)
        for each in part.values():
            _collect(schemas, each, found)


def _kind(field: dict[str, Any]) -> str:
    """Say a JSON schema in words; null is left out, since everywhere it is the same as leaving the field out."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if branches := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(dict.fromkeys(_kind(each) for each in branches if each.get("type") != "null")) or "null"
    if "enum" in field or "const" in field:
        values = field.get("enum") or [field["const"]]
        return ", ".join(f"`{value}`" for value in values if value is not None)
    kind = field.get("type", "anything")
    if kind == "array":
        return f"list of {_kind(field.get('items', {}))}{_most(field, 'Items')}"
    return f"{kind}{_range(field)}{_most(field, 'Length')}{_most(field, 'Properties')}"


def _range(field: dict[str, Any]) -> str:
    lowest, highest = field.get("minimum"), field.get("maximum")
    above, below = field.get("exclusiveMinimum"), field.get("exclusiveMaximum")
    parts = [
        *([f"from {_number(lowest)}"] if lowest is not None else []),
        *([f"above {_number(above)}"] if above is not None else []),
        *([f"to {_number(highest)}"] if highest is not None else []),
        *([f"below {_number(below)}"] if below is not None else []),
    ]
    return f" {' '.join(parts)}" if parts else ""


_POWERS = {2**31 - 1: "2^31 - 1", -(2**31): "-2^31", 2**63 - 1: "2^63 - 1", -(2**63): "-2^63"}


def _number(value: float) -> str:
    return _POWERS.get(int(value), f"{value:g}") if float(value).is_integer() else f"{value:g}"


def _most(field: dict[str, Any], what: str) -> str:
    """Say how long something may be."""
    unit = {"Items": "", "Length": " characters", "Properties": " entries"}[what]
    most = field.get(f"max{what}")
    return f", at most {most:,}{unit}" if most is not None else ""
