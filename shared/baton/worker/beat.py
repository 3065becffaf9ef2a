"""Whether a thread or a process still goes round: it counts its turns, another one looks whether they come."""

from __future__ import annotations

from collections.abc import Callable

STUCK_S = 2.5
"""What is silent, or in one turn, for so long may be stuck; with the messages that tell of it, 3 s."""
MAX_LOOK_S = 0.5
"""Most that one look adds: what the looker itself slept through, as when the whole machine was paused, counts for nobody."""


class Beat:
    """One counts in `turns`, from any thread; one looks, again and again. Before the first turn nothing is judged."""

    def __init__(self, limit_s: Callable[[], float]) -> None:
        """`limit_s` says, when asked, for how long a turn may last now."""
        self.limit_s = limit_s
        self.turns = 0
        self.is_stuck = False
        """Of the last look: the present turn has lasted too long."""
        self._turns_seen = 0
        self.stood_s = 0.0
        """How long the present turn has lasted, at the last look."""
        self._looked_at = 0.0

    def look(self, now: float) -> bool:
        """Judge by `now` of a clock that does not jump; return `is_stuck`."""
        turns = self.turns
        if turns != self._turns_seen:
            self._turns_seen, self.stood_s = turns, 0.0
        elif turns:
            self.stood_s += min(now - self._looked_at, MAX_LOOK_S)
        self._looked_at = now
        self.is_stuck = self.stood_s > 0 and self.stood_s >= self.limit_s()
        return self.is_stuck
