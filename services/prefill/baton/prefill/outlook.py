"""Outlook: what is computed before each prompt is whole, and how long that takes at the present pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from baton.engine.engine import Engine

LOOK_S = 1.0
"""Between two looks: each walks the queue."""
_NEWEST = 0.3
"""Weight of the newest measurement."""


class Outlook:
    """Look at an engine's queue now and then."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._looked_at = clock()
        self._num_chunk_tokens = engine.num_chunk_tokens
        self._was_busy = False
        self._rate = 0.0
        """Prompt tokens a second, from one look that found a queue to the next."""

    def look(self) -> Iterator[tuple[str, int, float]]:
        """Yield each request of the queue: prompt tokens up to its last, and seconds, 0 while the pace is not known.

        Nothing if the last look was a moment ago.
        """
        now = self._clock()
        if now - self._looked_at < LOOK_S:
            return
        num_tokens, seconds = self._engine.num_chunk_tokens - self._num_chunk_tokens, now - self._looked_at
        self._looked_at, self._num_chunk_tokens = now, self._engine.num_chunk_tokens
        queue = list(self._engine.queue())
        if num_tokens and queue and self._was_busy:
            self._rate += (num_tokens / seconds - self._rate) * (_NEWEST if self._rate else 1.0)
        self._was_busy = bool(queue)
        for request_id, num_ahead in queue:
            yield request_id, num_ahead, num_ahead / self._rate if self._rate else 0.0
