"""Pages of a list, newest first: `limit` of them, `after` an id."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from starlette.requests import Request

from baton.errors import refuse


def read_query(http: Request, known: tuple[str, ...]) -> dict[str, str]:
    """Return the parameters of a query, of which none may be unknown.

    Raises:
        InvalidRequest: one is.
    """
    query = dict(http.query_params)
    for name, value in query.items():
        if name not in known:
            raise refuse(name[:80], value, "there is no such parameter", f"Served are {', '.join(known)}.")
    return query


def page_of(
    ids: list[str], query: dict[str, str], load: Callable[[str], dict[str, Any] | None], *, most: int, usual: int
) -> dict[str, Any]:
    """Return OpenAI's list object; `load` gives an object, or None for one that is not wanted or gone meanwhile.

    Raises:
        InvalidRequest: `limit` or `order` are not valid.
    """
    text = query.get("limit", str(usual))
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= most):
        raise refuse("limit", text[:40], f"it must be a number from 1 to {most}")
    order, after = query.get("order", "desc"), query.get("after")
    if order not in ("asc", "desc"):
        raise refuse("order", order[:40], "it must be asc or desc")
    if order == "asc":
        ids = ids[::-1]
    if after is not None:
        ids = [each for each in ids if (each > after if order == "asc" else each < after)]
    found: Iterator[dict[str, Any]] = (shown for each in ids if (shown := load(each)) is not None)
    data = list(islice(found, int(text) + 1))
    has_more = len(data) > int(text)
    data = data[: int(text)]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}
