"""What is kept of workers that are gone, and of what workers sent one another: for /debug/workers. Bounded."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from baton.messages import Leg, Transfer

NUM_LOST = 50
"""Workers that are remembered."""


@dataclass(frozen=True, slots=True)
class LostWorker:
    """An incarnation of a worker that is gone."""

    id: str
    legs: tuple[Leg, ...]
    incarnation: str
    state: Literal["died", "left"]
    """It left if it drained, and nothing waited for it."""
    reason: str
    since: float
    """Unix time at which it came."""
    in_flight: int
    """Requests with an open leg there: they went on elsewhere."""
    at: float = field(default_factory=time.time)


@dataclass(slots=True)
class Transfers:
    """What one prefill worker has sent to one decode worker."""

    count: int = 0
    bytes: int = 0
    seconds: float = 0.0
    last_at: float = 0.0
    """Unix time."""
    last_tokens: int = 0
    last_bytes: int = 0
    last_ms: float = 0.0

    def add(self, transfer: Transfer) -> None:
        """Count one more; of a prompt that was cached whole, nothing travels."""
        if not transfer.nbytes:
            return
        seconds = max(transfer.seconds, transfer.exposed_seconds)  # the former is 0 for a single block
        self.count += 1
        self.bytes += transfer.nbytes
        self.seconds += seconds
        self.last_at, self.last_tokens, self.last_bytes = time.time(), transfer.num_tokens, transfer.nbytes
        self.last_ms = round(1000 * seconds, 3)
