"""What of a step is left for prompts' chunks: tokens, and time where somebody keeps a pace."""

from __future__ import annotations

from typing import Protocol

from baton.step_pace import StepPace
from baton.step_times import StepTimes

SMALL = 32
"""Tokens that a sequence lacks which never wait for time: the end of a prompt whose KV came from elsewhere."""
GRAIN = 32
"""Steps of so many tokens, or a multiple, are no slower than those of a few less: they are padded to it."""


class ChunkRoom:
    """So many tokens, however long they take."""

    is_timed = False
    """Whether who lacks little may pass who finds no room."""

    def __init__(self, num_left: int, seats: int = 1 << 20) -> None:
        """`seats` are for sequences that will decode: more would make every step too long."""
        self.num_left = num_left
        self.seats = seats

    def most(self, start: int, num_lacking: int) -> int:
        """Say how many of the tokens that a sequence lacks behind its first `start` fit; below 1: none."""
        return min(num_lacking, self.num_left)

    def take(self, start: int, num_new: int) -> None:
        """Count a chunk."""
        self.num_left -= num_new


class TimedRoom(ChunkRoom):
    """So many tokens, and no more than a step of so many seconds computes."""

    is_timed = True

    def __init__(
        self, num_left: int, times: StepTimes, seconds: float, rows: int, context: int, seats: int = 1 << 20
    ) -> None:
        """`rows` decode beside the chunks, and read `context` tokens."""
        super().__init__(num_left, seats)
        self._times, self._seconds = times, seconds
        self._rows, self._context = rows, context
        self._tokens = self._pairs = 0
        self.was_short = self.was_used = False
        """Whether a chunk found too little time, and whether one was taken for which time counts."""

    def most(self, start: int, num_lacking: int) -> int:
        """As for any room; a chunk that does not end its prompt fills the step to a multiple of `GRAIN`, or is none."""
        most = min(num_lacking, self.num_left)
        if most <= min(num_lacking, SMALL):
            return most
        done = {"tokens": self._tokens, "pairs": self._pairs}
        num = self._times.most_tokens(self._seconds, self._rows, self._context, **done, start=start, most=most)
        if num == num_lacking:
            return num
        least = SMALL // 2
        whole = num - (self._rows + self._tokens + num) % GRAIN
        if whole >= least or num >= least:
            return max(whole, least)
        self.was_short = True
        return 0

    def take(self, start: int, num_new: int) -> None:
        """Count a chunk."""
        super().take(start, num_new)
        self._tokens += num_new
        self._pairs += num_new * (start + num_new)
        self.was_used |= num_new > SMALL


class Pace(Protocol):
    """Who says how much time a step may take."""

    @property
    def pace(self) -> StepPace:
        """How long steps take, and how long they may."""

    def room(self, rows: int, context: int, num_left: int, *, is_shared: bool = False) -> ChunkRoom:
        """Say what of a step is left when so many rows decode in it, which read so many tokens.

        `is_shared`: a tenant that has none of the rows is to have a chunk.
        """
