"""How busy an engine is, and how fast."""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass, replace

from baton.engine.engine import Engine
from baton.engine.step_plan import StepPlan
from baton.messages import STEP_TOKENS, Counted, Load
from baton.step_learning import StepLearner
from baton.worker.beat import STUCK_S

_EMA = 0.2
"""Weight of the newest measurement: some five steps back."""
_REFRESH_S = 0.1
"""Between counts of what waits, which walk the queues."""
_SLOWER = 10.0
"""Times that a step may take what it is expected to: a cold cache, a machine that others use too."""
_FIRST_STEP_S = 600.0
"""While nothing is known of steps of a kind: the first prompt of a large model on a CPU takes minutes."""


@dataclass(frozen=True, slots=True)
class _Chunks:
    """The prompts' chunks of a step: how much work they are, and how long such a step takes at most."""

    num_tokens: float = 0.0
    num_pairs: float = 0.0
    """Tokens times those up to their end."""
    seconds: float = 0.0

    def scale(self, other: _Chunks) -> float:
        """How many times as long a step with `other` may take: as its matrices grow, or as its attention does."""
        return max(1.0, other.num_tokens / self.num_tokens, other.num_pairs / self.num_pairs)


class LoadMeter:
    """Measure how fast the engine is, from its steps."""

    def __init__(self, engine: Engine, learner: StepLearner) -> None:
        self._engine = engine
        self._learner = learner
        self._num_collected = engine.num_collected
        self._prefill_rate = 0.0
        self._decode_step_ms = 0.0
        self._num_steps = engine.num_steps  # from here on: after a warm-up
        self._num_chunk_tokens, self._num_chunk_pairs = engine.num_chunk_tokens, engine.num_chunk_pairs
        self._last_chunks = _Chunks()
        self._largest_chunks: _Chunks | None = None
        """Of late; the seconds are the longest of all since. They say most of chunks that are larger still: the rate of a
        small one, with many decodes beside it, says little."""
        self._began_at = 0.0
        self._load = Load()
        self._at = 0.0
        self._steps = [0] * (len(STEP_TOKENS) + 1)
        self._num_step_tokens = 0
        self._num_preemptions = engine.scheduler.num_preemptions

    def step_begins(self) -> None:
        """Note the time."""
        self._began_at = time.perf_counter()

    def step_ends(self) -> None:
        """Take in a step's time."""
        engine, now = self._engine, time.perf_counter()
        if engine.num_steps != self._num_steps:
            chunks = self._chunks_since()
            self._num_steps, self._last_chunks = engine.num_steps, chunks
            self._num_chunk_tokens, self._num_chunk_pairs = engine.num_chunk_tokens, engine.num_chunk_pairs
            if chunks.num_tokens:
                self._learn(replace(chunks, seconds=now - self._began_at))
        if engine.num_collected != self._num_collected:
            self._num_collected = engine.num_collected
            if engine.collected is not None:
                self._measure(engine.collected, engine.collected_s)

    def _measure(self, plan: StepPlan, seconds: float) -> None:
        """Learn from a step that took so long."""
        num_tokens, rows = plan.num_tokens - plan.num_decodes, plan.num_decodes
        self._steps[bisect_left(STEP_TOKENS, plan.num_tokens)] += 1
        self._num_step_tokens += plan.num_tokens
        self._learner.learn(seconds, rows, sum(plan.starts[:rows]), num_tokens, plan.num_chunk_pairs)
        if num_tokens:
            self._prefill_rate = _mean(self._prefill_rate, num_tokens / max(seconds, 1e-6))
        else:
            self._decode_step_ms = _mean(self._decode_step_ms, seconds * 1e3)

    def take_counted(self) -> Counted | None:
        """Return what was counted since the last call; None: nothing."""
        num_preemptions = self._engine.scheduler.num_preemptions
        since = num_preemptions - self._num_preemptions
        if not (since or self._num_step_tokens):
            return None
        counted = Counted(since, self._num_step_tokens, self._steps)
        self._num_preemptions = num_preemptions
        self._num_step_tokens, self._steps = 0, [0] * len(self._steps)
        return counted

    def limit_s(self) -> float:
        """Say how long the loop may take for what it does now; asked by another thread."""
        engine = self._engine
        if engine.num_steps == self._num_steps:  # between steps
            return STUCK_S
        # a GPU's step is waited for while the next one is launched
        running = [chunks for chunks in (self._last_chunks, self._chunks_since()) if chunks.num_tokens]
        known = self._largest_chunks
        if not running:
            expected_s = self._decode_step_ms / 1e3
        else:
            expected_s = 0.0 if known is None else known.seconds * max(map(known.scale, running))
        return max(STUCK_S, _SLOWER * expected_s) if expected_s else _FIRST_STEP_S

    def _chunks_since(self) -> _Chunks:
        """Return what was launched since the last step that ended."""
        engine = self._engine
        return _Chunks(engine.num_chunk_tokens - self._num_chunk_tokens, engine.num_chunk_pairs - self._num_chunk_pairs)

    def _learn(self, chunks: _Chunks) -> None:
        """Keep the largest chunks of late."""
        known = self._largest_chunks
        if known is None or chunks.num_tokens >= known.num_tokens:
            self._largest_chunks = chunks
        else:
            longest_s = max(known.seconds, chunks.seconds)
            self._largest_chunks = _Chunks(0.99 * known.num_tokens, 0.99 * known.num_pairs, longest_s)

    def load(self, *, draining: bool, asleep: bool = False, force: bool = False) -> Load:
        """Measure the present load; counted anew at most ten times a second unless forced."""
        now = time.monotonic()
        is_as_before = draining == self._load.draining and asleep == self._load.asleep
        if now - self._at < _REFRESH_S and not force and is_as_before:
            return self._load
        self._at = now
        scheduler, pool = self._engine.scheduler, self._engine.pool
        waiting = sum(s.num_tokens - s.num_computed for s in scheduler.waiting)
        begun = sum(s.num_tokens - s.num_computed for s in scheduler.running if s.num_output_tokens == 0)
        context = sum(s.num_computed for s in scheduler.running)
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
            context_tokens=context,
            asleep=asleep,
        )
        return self._load


def _mean(mean: float, value: float) -> float:
    return value if mean == 0.0 else mean + _EMA * (value - mean)
