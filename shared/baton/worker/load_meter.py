"""How busy an engine is, and how fast."""

from __future__ import annotations

import time

from baton.engine.engine import Engine
from baton.messages import Load
from baton.worker.beat import STUCK_S

_EMA = 0.2
"""Weight of the newest measurement: some five steps back."""
_REFRESH_S = 0.1
"""Between counts of what waits, which walk the queues."""
_SLOWER = 10.0
"""Times that a step may take what it is expected to: a cold start, a longer context, a machine that others use too."""
_FIRST_STEP_S = 30.0
"""While nothing is known of steps of a kind."""


class LoadMeter:
    """Measure how fast the engine is, from its steps."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._prefill_rate = 0.0
        self._decode_step_ms = 0.0
        self._num_steps, self._num_chunk_tokens = engine.num_steps, engine.num_chunk_tokens  # after a warm-up
        self._last_chunk_tokens = 0
        self._largest_chunk = 0.0, 0.0
        """Tokens of the largest chunk of late, and the longest that a step with so many or fewer took, in seconds."""
        self._began_at = 0.0
        self._load = Load()
        self._at = 0.0

    def step_begins(self) -> None:
        """Note the time."""
        self._began_at = time.perf_counter()

    def step_ends(self) -> None:
        """Take in a step's time."""
        engine = self._engine
        if engine.num_steps == self._num_steps:
            return
        seconds = time.perf_counter() - self._began_at
        num_chunk_tokens = engine.num_chunk_tokens - self._num_chunk_tokens
        self._num_steps, self._num_chunk_tokens = engine.num_steps, engine.num_chunk_tokens
        self._last_chunk_tokens = num_chunk_tokens
        if num_chunk_tokens:
            self._learn_chunk(num_chunk_tokens, seconds)
            self._prefill_rate = _mean(self._prefill_rate, num_chunk_tokens / max(seconds, 1e-6))
        else:
            self._decode_step_ms = _mean(self._decode_step_ms, seconds * 1e3)

    def limit_s(self) -> float:
        """Say how long the loop may take for what it does now; asked by another thread."""
        engine = self._engine
        if engine.num_steps == self._num_steps:  # between steps
            return STUCK_S
        # a GPU's step is waited for while the next one is launched
        num_chunk_tokens = max(engine.num_chunk_tokens - self._num_chunk_tokens, self._last_chunk_tokens)
        if num_chunk_tokens:
            largest, longest_s = self._largest_chunk
            expected_s = longest_s * max(1.0, num_chunk_tokens / max(largest, 1.0))
        else:
            expected_s = self._decode_step_ms / 1e3
        return max(STUCK_S, _SLOWER * expected_s) if expected_s else _FIRST_STEP_S

    def _learn_chunk(self, num_tokens: int, seconds: float) -> None:
        """Keep what says most of larger chunks; rates of small ones, with many decodes beside them, say little."""
        largest, longest_s = self._largest_chunk
        if num_tokens >= largest:
            self._largest_chunk = num_tokens, seconds
        else:
            self._largest_chunk = 0.99 * largest, max(longest_s, seconds)

    def load(self, *, draining: bool, force: bool = False) -> Load:
        """Measure the present load; counted anew at most ten times a second unless forced."""
        now = time.monotonic()
        if now - self._at < _REFRESH_S and not force and draining == self._load.draining:
            return self._load
        self._at = now
        scheduler, pool = self._engine.scheduler, self._engine.pool
        waiting = sum(s.num_tokens - s.num_computed for s in scheduler.waiting)
        begun = sum(s.num_tokens - s.num_computed for s in scheduler.running if s.num_output_tokens == 0)
        self._load = Load(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting) + len(scheduler.receiving),
            waiting_tokens=max(0, waiting + begun),
            kv_free_blocks=pool.num_available,
            kv_total_blocks=pool.num_total,
            prefill_rate=self._prefill_rate,
            decode_step_ms=self._decode_step_ms,
            num_steps=self._engine.num_steps,
            draining=draining,
        )
        return self._load


def _mean(mean: float, value: float) -> float:
    return value if mean == 0.0 else mean + _EMA * (value - mean)
