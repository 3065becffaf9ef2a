"""Held tokens: a prefill worker's first token, kept back until its decode worker goes on.

Between the two lies the transfer of the prompt's KV, and the step that the decode worker is in: several times the gap
between any two later tokens. Who states a target for gaps gets the first token a little later, and no such gap behind it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from baton.messages import Token
from baton.router.attempt import Attempt, State
from baton.router.config import RouterConfig

MOST_S = 0.1
"""Without a target for first tokens: what nobody sees."""
_REST = 0.05
"""Of that target, for the way to the client: what is held to its last moment comes too late."""


@dataclass(frozen=True, slots=True)
class HeldToken:
    """One that waits, and the clock that ends the wait."""

    token: Token
    worker_id: str
    held_at: float
    timer: asyncio.TimerHandle


class Holding:
    """Which tokens are held, and for how long."""

    def __init__(self, config: RouterConfig) -> None:
        self._has_target = config.itl_target_ms > 0
        self._ttft_s = (1 - _REST) * config.ttft_target_ms / 1e3

    def longest_s(self, attempt: Attempt, token: Token, worker_id: str, age_s: float) -> float:
        """Return how long a token may be held, of a request that came `age_s` ago; 0: not at all."""
        if not self._has_target or worker_id != attempt.prefill or attempt.state is not State.PREFILLING:
            return 0.0
        is_last = token.finish_reason is not None or attempt.last_at == 0
        if is_last or token.choice or token.epoch != attempt.epoch:
            return 0.0
        return max(0.0, self._ttft_s - age_s) if self._ttft_s else MOST_S
