"""What a request to /v1/responses builds on: the answers and items that it names."""

from __future__ import annotations

import re

import msgspec

from baton.errors import InvalidRequest
from baton.requests.translated import Context
from baton.router.responses.store import OPEN, Record, ResponseStore

_ITEM_ID = re.compile(r"[a-z]+_([0-9a-f]{32})(?:[0-9a-f]{4}|i[0-9]+)", re.ASCII)


class ResponseGone(InvalidRequest):
    """No such answer is kept."""

    status = 404


class _Item(msgspec.Struct):
    type: str | None = None
    id: str | None = None


class _Peeked(msgspec.Struct):
    """What of a body says what it builds on."""

    previous_response_id: str | None = None
    input: str | list[_Item] = ""


_PEEK = msgspec.json.Decoder(_Peeked)


async def read_context(store: ResponseStore, tenant: bytes, body: bytes, response_id: str) -> Context:
    """Return what a body builds on. One that cannot be read builds on nothing, and is refused later.

    Raises:
        ResponseGone: it names an answer that is not kept, or not any more.
        InvalidRequest: it names one that is still being made.
    """
    try:
        peeked = _PEEK.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return Context(response_id)
    context = Context(response_id)
    previous = peeked.previous_response_id
    if previous is not None:
        context.before = (await _previous(store, tenant, previous)).conversation()
    if isinstance(peeked.input, list):
        wanted = {item.id for item in peeked.input if item.id is not None and item.type in (None, "item_reference")}
        context.referred = await _referred(store, tenant, wanted)
    return context


async def _previous(store: ResponseStore, tenant: bytes, name: str) -> Record:
    field = "previous_response_id"
    if not store.is_on:
        raise InvalidRequest(
            f"{field}={name[:80]!r} is not valid: this router keeps no responses (--response-store off). Send the "
            f"conversation in input.",
            field=field,
        )
    record = await store.get((tenant, name))
    if record is None:
        message = f"Previous response with id '{name[:80]}' not found. Send the conversation in input."
        raise ResponseGone(message, field=field, code="previous_response_not_found")
    if record.status in OPEN:
        message = f"{field}={name[:80]!r} is not valid: it is still being made. Wait for its end."
        raise InvalidRequest(message, field=field, code="previous_response_in_progress")
    return record


async def _referred(store: ResponseStore, tenant: bytes, wanted: set[str]) -> dict[str, bytes]:
    """Look items up by their ids, each of which holds that of the answer that it belongs to."""
    found: dict[str, bytes] = {}
    names = {match[1] for each in wanted if (match := _ITEM_ID.fullmatch(each))}
    for name in names:
        record = await store.get((tenant, f"resp_{name}"))
        if record is None:
            continue
        for item in (*listed(record.input), *listed(record.output())):
            item_id = msgspec.json.decode(item, type=_Item).id
            if item_id in wanted:
                found[item_id] = bytes(item)
    return found


def listed(items: bytes) -> list[msgspec.Raw]:
    """Return the items of a list in JSON."""
    return msgspec.json.decode(items, type=list[msgspec.Raw])
