"""What is read of an HTTP request: its body, bounded in size and time, as a closed model; and who asks."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request

from baton.errors import InvalidRequest
from baton.requests.chat import ChatRequest
from baton.requests.refusals import read_json
from baton.requests.translated import Context, Translates
from baton.router.config import RouterConfig
from baton.router.dispatcher import Running
from baton.router.long_bodies import INLINE_NBYTES
from baton.router.pin import HEADER, Pin, read_pin
from baton.router.router_state import RouterState

_Model = TypeVar("_Model", bound=BaseModel)
PRIORITY = "baton.priority"
"""Of a scope, which no client writes: the lowest priority number that its request may have."""
_MAX_TIMEOUT_S = 24 * 3600.0
_TIMEOUT = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?", re.ASCII)


class BodyTooLong(InvalidRequest):
    """The body exceeds the limit."""

    status = 413


class BodyTooSlow(InvalidRequest):
    """The body did not arrive in time."""

    status = 408


async def read_body(http: Request, model: type[_Model], router: RouterState) -> _Model:
    """Read and check a body; a long one in a process beside the event loop.

    Raises:
        InvalidRequest: too long, too slow, not JSON, or not what the model takes.
    """
    body = await receive_body(http, router.config)
    if len(body) <= INLINE_NBYTES:
        return read_json(model, body)
    return await router.long_bodies.read(model, body, router.dispatcher.last_facts)


async def receive_body(http: Request, config: RouterConfig) -> bytes:
    """Receive a body, bounded in size and time.

    Raises:
        InvalidRequest: too long or too slow.
    """
    limit = config.max_body_nbytes
    declared = http.headers.get("content-length", "0")
    if declared.isdigit() and int(declared[:20]) > limit:
        raise _too_long(int(declared[:20]), limit)
    parts, nbytes = [], 0
    try:
        async with asyncio.timeout(config.body_timeout_s):
            async for part in http.stream():
                nbytes += len(part)
                if nbytes > limit:
                    raise _too_long(nbytes, limit)
                parts.append(part)
    except ClientDisconnect:  # also after a chunk that is none: the protocol has answered already
        raise InvalidRequest("The body broke off.") from None
    except TimeoutError:
        raise BodyTooSlow(f"The body did not arrive within {config.body_timeout_s:g} s.") from None
    return b"".join(parts)


def _too_long(nbytes: int, limit: int) -> BodyTooLong:
    return BodyTooLong(
        f"The body of {nbytes} bytes is not valid: at most {limit} bytes are taken. Send less, or raise "
        f"--max-body-nbytes.",
        code="body_too_long",
    )


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and under which conditions."""

    public_id: str
    tenant: bytes
    timeout_s: float | None
    explain: bool
    pin: Pin | None
    running: list[Running]
    """Takes what is begun for it, for who tells of the request when it has ended."""
    least_priority: int | None = None
    """The lowest number that it may have; None: any."""

    def priority(self, given: int | None) -> int:
        """Return the priority of its request, which asks for `given`."""
        return given or 0 if self.least_priority is None else max(given or 0, self.least_priority)


async def read_request(http: Request, model: type[_Model], router: RouterState) -> tuple[_Model, Caller]:
    """Read and check a body, and the headers that say how it is to be served.

    Raises:
        InvalidRequest: as `read_body`; or x-request-timeout is not a number of seconds; or as `read_pin`.
    """
    body = await read_body(http, model, router)
    return body, read_caller(http, router)


async def read_translated(
    model: type[Translates], body: bytes, context: Context, router: RouterState
) -> tuple[ChatRequest, bytes]:
    """Check the body of a route that answers by a chat; return the chat, and what is needed beside it.

    Raises:
        InvalidRequest: not JSON, or not what the model takes.
    """
    if len(body) + context.nbytes <= INLINE_NBYTES:
        return read_json(model, body).translate(context)
    return await router.long_bodies.translate(model, body, context, router.dispatcher.last_facts)


def read_caller(http: Request, router: RouterState) -> Caller:
    """Read the headers that say how a request is to be served.

    Raises:
        InvalidRequest: x-request-timeout is not a number of seconds; or as `read_pin`.
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
    running: list[Running] = http.scope["state"].setdefault("running", [])
    explain = http.headers.get("x-baton-explain") in ("1", "true")
    pin = read_pin(http.headers.get(HEADER), router.config)
    return Caller(
        *(http.scope["state"]["request_id"], http.state.tenant, timeout_s, explain, pin, running),
        least_priority=http.scope.get(PRIORITY),
    )
