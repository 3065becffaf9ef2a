"""Turnover: when a place in a decode worker's batch becomes free, learned from the answers that go on and that have ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from baton.messages import Load
from baton.protocol import Share

_KEEP = 0.98
"""Weight of the past in a moving mean: about fifty answers."""
_LONG = 256
"""Tokens of an answer whose length is left to the model."""
_SHORT_WAIT_S, _MOST_OFF, _RISE, _FALL = 0.5, 2.0, 0.1, 0.05
"""A wait twice as long as predicted is the most that is believed; a factor rises in about ten waits, and falls in twenty."""
_KEEP_PACE = 0.95
"""About twenty reports, two seconds."""


class AnswerLength:
    """How many tokens answers have in the mean, apart for each power of two of what is asked for: alike callers ask alike."""

    __slots__ = ("_ended",)

    def __init__(self) -> None:
        self._ended: dict[int, tuple[float, float]] = {}
        """Number of answers and their tokens."""

    def learn(self, most: int | None, num_tokens: float) -> None:
        """Take in an answer that has ended, of at most `most` tokens."""
        num, total = self._ended.get(_kind(most), (0.0, 0.0))
        self._ended[_kind(most)] = _KEEP * num + 1, _KEEP * total + num_tokens

    def predict(self, most: int | None) -> float:
        """Predict an answer: as asked for before any has ended, then like those."""
        num, total = self._ended.get(_kind(most), (0.0, 0.0))
        mean = (total + answer_prior(most)) / (num + 1)
        return mean if most is None else min(mean, most)

    def predict_rest(self, most: int | None, done: float) -> float:
        """Predict what is left of an answer; one that is longer than most goes on for as long as it has."""
        mean = self.predict(most)
        if done < mean:
            return mean - done
        return done if most is None else max(min(done, most - done), 1.0)


def _kind(most: int | None) -> int:
    return 0 if most is None else most.bit_length()


def answer_prior(most: int | None) -> int:
    """How long an answer of at most `most` tokens is taken to be while nothing is known."""
    return _LONG if most is None else min(most, _LONG)


class Pace:
    """The seconds from one token of a sequence to its next, between reports: waits, prompts in the step and all."""

    __slots__ = ("_at", "_num_steps", "_seconds", "_steps", "_was_running")

    def __init__(self) -> None:
        self._at = self._seconds = self._steps = 0.0
        self._num_steps = 0
        self._was_running = False

    def report(self, load: Load, now: float) -> None:
        """Take in a worker's report; time without running sequences says nothing."""
        num_new = load.num_steps - self._num_steps
        if num_new and self._was_running and self._at:
            self._seconds = _KEEP_PACE * self._seconds + now - self._at
            self._steps = _KEEP_PACE * self._steps + num_new
        if num_new or not load.num_running:
            self._at, self._num_steps = now, load.num_steps
        self._was_running = load.num_running > 0

    @property
    def seconds(self) -> float:
        """0 while nothing is known, and then nobody is predicted to wait."""
        return self._seconds / self._steps if self._steps else 0.0


def num_places(load: Load, num_places: int) -> int:
    """How many sequences run at once: the batch's bound, or what the KV blocks hold of sequences like the present ones."""
    num_used, num_here = load.kv_total_blocks - load.kv_free_blocks, load.num_running + load.num_waiting
    places = num_places or 1 << 30
    if num_used > 0 and load.num_running:
        places = min(places, max(load.kv_total_blocks * num_here // num_used, 1))
    return places


def wait_s(position: float, places: int, left: Sequence[float], length: float, pace_s: float) -> float:
    """Predict when the `position`-th place from now becomes free.

    `left` are the tokens that running sequences lack, ascending, as far as they are known: as others run beside them that
    this router does not know, they stand for all `places`. After them every place is taken by an answer of `length`.
    """
    if position <= 0 or not pace_s:
        return 0.0
    turns, place = divmod(position / places, 1.0)
    begins = left[int(place * len(left))] if left else place * length
    return pace_s * (turns * length + begins)


class Foresight:
    """By how much waits come out longer than they were predicted, learned from those that are over."""

    __slots__ = ("factor",)

    def __init__(self) -> None:
        self.factor = 1.0
        """What predictions are multiplied by: near what two of three waits stay below."""

    def learn(self, predicted_s: float, actual_s: float) -> None:
        """Take in a wait that is over; short ones say nothing."""
        if predicted_s < _SHORT_WAIT_S:
            return
        off = min(actual_s / predicted_s, _MOST_OFF) - self.factor
        self.factor = max(self.factor + off * (_RISE if off > 0 else _FALL), 1.0)


class Backlog:
    """What waits for one worker, and whose it is."""

    __slots__ = ("_of", "total")

    def __init__(self) -> None:
        self.total = 0
        self._of: dict[Share, int] = {}

    def add(self, share: Share, amount: int) -> None:
        """Count something in, or with an amount below 0 out."""
        self.total += amount
        if share.tenant:
            self._of[share] = left = self._of.get(share, 0) + amount
            if not left:
                del self._of[share]

    def before(self, share: Share, own: float) -> float:
        """How much has its turn before a new `own`: all of the same tenant's, and of another's what its weight gives it meanwhile."""
        if not share.tenant:
            return self.total
        mine = self._of.get(share, 0)
        others = (
            min(amount, (mine + own) * each.weight / share.weight) for each, amount in self._of.items() if each != share
        )
        return mine + sum(others)

    def of(self, share: Share) -> int:
        """How much is one tenant's."""
        return self._of.get(share, 0) if share.tenant else self.total


@dataclass(slots=True)
class Batch:
    """What decodes on a worker, and what waits for a place there."""

    left: list[float] = field(default_factory=list)
    """What each running answer lacks, ascending."""
    running: Backlog = field(default_factory=Backlog)
    waiting: Backlog = field(default_factory=Backlog)

    def position(self, share: Share, num_new: int, num_here: int, places: int) -> float:
        """Which place, in the order in which they become free, is the last of a new request; 0 or less: one that is free.

        `num_here` counts what others have sent too. Of a tenant beside others some places are kept free.
        """
        position = num_here + num_new - places
        if position <= 0 or not share.tenant:
            return position
        num_others = max(num_here - self.running.total - self.waiting.total, 0)
        most = places - max(places // 8, 1)
        free = min(places - self.running.total - num_others, most - self.running.of(share))
        if self.waiting.of(share) + num_new <= free:  # others wait beside it because they may not take it
            return 0
        return min(self.waiting.before(share, num_new) + num_new, position + places - most)
