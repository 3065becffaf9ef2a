"""StepPace: how long a worker lets steps take in which prompts' chunks lie beside decodes. Plain numbers: a worker keeps to it,
and its routers reckon with it."""

from __future__ import annotations

from typing import Annotated

import msgspec

from baton.step_times import FULL, StepTimes

JITTER_S = 0.002
"""What a token takes from the step to its client, at times: on two H200s of 16 requests/s no step took longer than 13.5 ms
for a target of 15, and one gap in 500 was longer than that."""
EVEN_JITTER_S = 0.0005
"""The same where all steps are alike: those that are slow for once are few, and follow one that was not late."""
MOST_EVEN_MARGIN = 1.1
"""Steps that take longer for once, as the host was busy, take no less with fewer sequences."""
BROKEN = 4.0
"""Times the target that a step may take which breaks it anyway."""
BREAK_EVERY = 100
"""Steps: where the target leaves no time for chunks, one of so many breaks it, so that prompts move, and 99 of 100 gaps
are within it. A few tokens in every step would break it always, and compute no more."""

ANY_NUMBER = 1 << 20

_Amount = Annotated[float, msgspec.Meta(ge=0, le=1e6)]


class StepPace(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A worker's step times, and the gap between tokens that it keeps to."""

    times: StepTimes
    target_s: _Amount = 0.0
    """Of the gaps between a sequence's tokens; 0: none."""
    slower: _Amount = 0.0
    """Times a step without chunks that one with chunks is predicted to take at least, whatever the target and the margins;
    0: the target is all."""
    margin: _Amount = 1.0
    """Times the predicted time that nearly all steps with chunks keep to."""
    even_margin: _Amount = 1.0
    """The same of steps without."""

    def most_s(self, rows: int, context: int) -> float:
        """Say how many predicted seconds a step with chunks may take beside so many rows."""
        if not self.target_s:
            return float("inf")
        # no margin of what nobody asked for: on a busy machine, where it is above 1.5, prompts would hardly move
        return max((self.target_s - JITTER_S) / max(self.margin, 1.0), self.slower * self.times.seconds(rows, context))

    def broken_s(self, rows: int, context: int) -> float:
        """Say how many seconds a step may take that breaks the target."""
        return BROKEN * max(self.target_s, max(self.slower, 1.0) * self.times.seconds(rows, context))

    def most_rows(self, context: int) -> int:
        """Say how many sequences of so many tokens may decode together within the target: more would break it for all.

        There is no such bound where nobody asked for the target, or one sequence alone does not keep to it.
        """
        if not self.target_s or self.slower:
            return ANY_NUMBER
        times = self.times
        free_s = (
            max(0.0, self.target_s - EVEN_JITTER_S) / min(max(self.even_margin, 1.0), MOST_EVEN_MARGIN) - times.step
        )
        num = free_s / max(times.row + times.context * context, 1e-12)
        if num > FULL:  # more than one pass of the weights' worth of tokens
            num = (free_s + times.full * FULL) / max(times.row + times.context * context + times.full, 1e-12)
        return int(num) if 1 <= num < ANY_NUMBER else ANY_NUMBER
