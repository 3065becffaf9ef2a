"""Pin: the way that a request is to go, by its header `x-baton-pin: path=remote; decode=decode-0; prefill=prefill-1; replay=8`.

For those who compare workers and paths with one another, as `baton verify` does. It holds for the first attempt: a request
whose worker is lost goes on wherever it can.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from baton.errors import InvalidRequest
from baton.listener import is_loopback
from baton.router.auth import NotAuthorized
from baton.router.config import PathMode, RouterConfig
from baton.router.costs import Candidate
from baton.router.pool import Worker

HEADER = "x-baton-pin"
_FORM = "it must be path=local|remote, decode=WORKER, prefill=WORKER and replay=TOKENS, any of them, with ; between"


@dataclass(frozen=True, slots=True)
class Pin:
    """What is fixed; the rest is chosen as always."""

    path: PathMode | None = None
    decode: str | None = None
    prefill: str | None = None
    replay: int = 0
    """Tokens after which the request is begun again on another worker, as if it had lost its own; 0: never."""

    def check(self, workers: Mapping[str, Worker]) -> None:
        """Raise InvalidRequest where a worker is not there, or has not the leg."""
        legs = {"decode": self.decode, "prefill": self.prefill}
        for leg, worker_id in legs.items():
            worker = workers.get(worker_id or "")
            if worker_id is not None and not (
                worker and (worker.can_decode if leg == "decode" else worker.can_prefill)
            ):
                raise _invalid(
                    f"{leg}={worker_id[:80]}", f"no live worker of this name takes {leg}; see /debug/workers"
                )

    def narrow(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Leave the named workers the legs that they are named for."""
        return [
            dataclasses.replace(
                each,
                can_decode=each.can_decode and self.decode in (None, each.worker_id),
                can_prefill=each.can_prefill and self.prefill in (None, each.worker_id),
            )
            for each in candidates
        ]


def read_pin(text: str | None, config: RouterConfig) -> Pin | None:
    """Read the header; None without one.

    Raises:
        NotAuthorized: the router lets in whoever reaches it from elsewhere, without a key.
        InvalidRequest: it has another form.
    """
    if text is None:
        return None
    if not config.api_key and not _is_loopback(config.host):
        raise NotAuthorized(f"{HEADER} is for those who have a key, and this router has none: start it with --api-key.")
    parts = [part.partition("=") for part in text.replace(" ", "").split(";") if part]
    given = {name: value for name, _, value in parts}
    _check_form(text, given, len(parts))
    replay = int(given.get("replay", "0"))
    path: PathMode | None = "local" if given.get("path") == "local" else None
    if given.get("path") == "remote" or "prefill" in given:
        path = "remote"
    return Pin(path, given.get("decode"), given.get("prefill"), replay)


def _check_form(text: str, given: Mapping[str, str], num_parts: int) -> None:
    is_known = given.keys() <= {"path", "decode", "prefill", "replay"} and len(given) == num_parts > 0
    replay, path = given.get("replay", "1"), given.get("path")
    is_number = replay.isascii() and replay.isdigit() and len(replay) <= 6 and int(replay) > 0
    paths: Collection[str | None] = ("remote", None) if "prefill" in given else ("local", "remote", None)
    if not (is_known and all(given.values()) and is_number and path in paths):
        raise _invalid(text[:80], _FORM)


def _invalid(value: str, must: str) -> InvalidRequest:
    return InvalidRequest(f"{HEADER}={value!r} is not valid: {must}.", field=HEADER)


@functools.cache
def _is_loopback(host: str) -> bool:
    """Looked up once: a name may need the network."""
    return is_loopback(host)
