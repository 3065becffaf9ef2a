"""Moves: which requests leave a decode worker that drains, to go on elsewhere with their KV.

A move is an attempt like any other. The worker that drains is its prefill worker: it has the KV of prompt and answer in its
prefix cache, computes the one token that follows, and holds the blocks until the other has fetched them. So there is no
message and no state of its own, and what fails on the way is replayed, as always.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from baton.router.attempt import Attempt, State

AT_ONCE = 4
"""Moves of one worker under way: each stream pauses while its KV travels, the others go on where they are."""


def next_to_move(worker_id: str, attempts: Mapping[str, Attempt]) -> list[str]:
    """Name the requests to move now, given the attempt of each that has a leg on the worker."""
    num_moving = sum(
        attempt.prefill == worker_id and not (attempt.kv_arrived or attempt.decode_gave_token)
        for attempt in attempts.values()
    )
    able = (request_id for request_id, attempt in attempts.items() if _can_move(worker_id, attempt))
    return list(islice(able, max(AT_ONCE - num_moving, 0)))


def _can_move(worker_id: str, attempt: Attempt) -> bool:
    """Whether it decodes there; without choice 0, whose KV moves, a replay is as good."""
    return attempt.decode == worker_id and attempt.state is State.DECODING and not attempt.choices[0].is_done
