"""Caller: who asks, and under which conditions, as the headers say."""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.requests import Request

from baton.errors import InvalidRequest

_MAX_TIMEOUT_S = 24 * 3600.0
_TIMEOUT = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and under which conditions."""

    public_id: str
    tenant: bytes
    timeout_s: float | None
    explain: bool


def read_caller(http: Request) -> Caller:
    """Read the headers that matter.

    Raises:
        InvalidRequest: x-request-timeout is not a number of seconds.
    """
    text = http.headers.get("x-request-timeout")
    timeout_s = None
    if text is not None:
        timeout_s = float(text) if _TIMEOUT.fullmatch(text) else 0.0
        if not 0 < timeout_s <= _MAX_TIMEOUT_S:
            raise InvalidRequest(
                f"x-request-timeout={text[:40]!r} is not valid: it must be seconds, above 0 and at most "
                f"{_MAX_TIMEOUT_S:g}.",
                field="x-request-timeout",
            )
    explain = http.headers.get("x-baton-explain") in ("1", "true")
    return Caller(http.scope["state"]["request_id"], http.state.tenant, timeout_s, explain)
