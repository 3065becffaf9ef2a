"""Pacer: sizes prompts' chunks, so that steps which also decode take no longer than a target allows."""

from __future__ import annotations

from baton.engine.chunk_room import ChunkRoom, TimedRoom
from baton.step_learning import StepLearner
from baton.step_pace import BREAK_EVERY, StepPace

DEFAULT_TARGET_S = 0.030
"""On a GPU: faster than anybody reads, and long enough for chunks of hundreds of tokens, which cost no throughput."""
_SLOWER = 1.5
"""Where a step without chunks takes as long as that default: a model, or a batch, that is slow by itself."""
_SHARED = 2.0
"""The same where a tenant that has no row in the step has a chunk: the step is half its."""


class Pacer:
    """What one worker knows of its steps, and how long they may take.

    Steps without decodes are free, but no longer than is good for throughput: who comes meanwhile waits for their end.
    """

    def __init__(self, learner: StepLearner, target_ms: float | None, most_mixed: int = 0) -> None:
        """Make ready.

        Args:
            learner: of this worker's steps.
            target_ms: None: what is right for most; 0: none, and chunks are as long as a step may be.
            most_mixed: tokens up to which a step is one launch. Beyond, the host's hundreds of launches take as long as
                they take, 12 to 23 ms, which is no time that anybody can predict. 0: there is no such bound.
        """
        self.learner = learner
        self._most_mixed = most_mixed
        self._target_s = DEFAULT_TARGET_S if target_ms is None else target_ms / 1000
        self._slower = _SLOWER if target_ms is None else 0.0
        self._num_short = 0
        """Steps in a row in which chunks found no time."""
        self._last: TimedRoom | None = None

    @property
    def pace(self) -> StepPace:
        """What routers are told."""
        learner = self.learner
        return StepPace(learner.times, self._target_s, self._slower, learner.margin, learner.even_margin)

    def room(self, rows: int, context: int, num_left: int, *, is_shared: bool = False) -> ChunkRoom:
        """Say what of the next step is left for chunks; `is_shared`: with a tenant that has no row in it."""
        last, self._last = self._last, None
        if last is not None:
            self._num_short = self._num_short + 1 if last.was_short and not last.was_used else 0
        pace = self.pace
        if not rows:
            return ChunkRoom(min(num_left, pace.times.efficient_chunk(num_left)))
        if not self._target_s:
            return ChunkRoom(num_left)
        if self._most_mixed > rows:
            num_left = min(num_left, self._most_mixed - rows)
        is_broken = self._num_short >= BREAK_EVERY
        seconds = pace.broken_s(rows, context) if is_broken else pace.most_s(rows, context)
        if is_shared and self._slower:
            seconds = max(seconds, _SHARED * pace.times.seconds(rows, context))
        seats = pace.most_rows(context // rows) - rows
        self._last = TimedRoom(num_left, pace.times, seconds, rows, context, seats)
        return self._last
