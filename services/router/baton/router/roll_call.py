"""Roll call, a router's side: names the legs that a worker should have, and finds those that it has lost.

A leg is lost when the worker does not name it in the answer to a call that was made after its Start: it had the Start
before the call, and says all tokens and errors of a leg before it stops to name it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from baton.messages import OpenLeg
from baton.router.attempt import Attempt

Named = Mapping[tuple[str, int], Sequence[int]]
"""Open choices by request id and epoch."""


def name_legs(attempts: Iterable[tuple[str, Attempt]]) -> list[OpenLeg]:
    """Name a worker's legs, given the request's id and the attempt of each."""
    return [OpenLeg(request_id, attempt.epoch, attempt.open_choices) for request_id, attempt in attempts]


def by_key(legs: Iterable[OpenLeg]) -> Named:
    """Sort an answer for `is_lost`."""
    return {(leg.request_id, leg.epoch): leg.choices for leg in legs}


def is_lost(request_id: str, attempt: Attempt, worker: str, named: Named) -> bool:
    """Whether a token is due that this worker will never say."""
    choices = named.get((request_id, attempt.epoch), ())
    return any(choice not in choices for choice in attempt.due(worker))
