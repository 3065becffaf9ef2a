"""StepLearner: learn `StepTimes` from measured steps, while they run.

Least squares of relative errors, with forgetting, none of the numbers below 0. What recent steps do not show (chunks, while
only decodes run) stays as it was learned last. Before a few steps have been seen, the shape of the times is that of a
known model on a known device, and their scale that of the first steps. A step that takes ten times as long as predicted
(a kernel that is compiled, a collection of garbage) counts for little, one by one; if all do, they are believed.

    learner = StepLearner()
    for rows, context, tokens, pairs, seconds in measured:
        learner.learn(seconds, rows, context, tokens, pairs)
    learner.times.prompt_seconds(2048)

About 40 us a step that is taken in: of steps without chunks, one in eight.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import mul
from statistics import median

import msgspec

from baton.step_times import FULL, LLAMA_8B_ON_H100, StepTimes

_KEEP = {False: 0.95, True: 0.985}
"""Weight of the past, without and with chunks: some 150 steps of the one kind, and 70 of the other."""
_NUM_FIRST = 8
_NUM_KNOWN = 3
_EVERY = 8
_ANCHOR = 0.2
"""Weight, in steps, of what is known already."""
_OUTLIER = 3.0
"""Mean errors from which a step counts less."""
_STALLED = 3.0
"""Times that a step takes what is predicted from which no margin would have helped."""
_LET_PASS = 100
"""Steps of which one may take longer than its margin says: the margin moves with each."""


class StepLearner:
    """Learn one worker's step times."""

    def __init__(self, prior: StepTimes = LLAMA_8B_ON_H100) -> None:
        self._prior = prior
        self._first: list[float] = []
        """The first steps' times over those of the prior."""
        self._scale = self._theta = list(msgspec.structs.astuple(prior))
        self._kinds = {False: _Seen.of(len(self._theta)), True: _Seen.of(len(self._theta))}
        """Steps without and with chunks: the many of one kind do not have the few of the other forgotten."""
        self._num_passed = 0
        self._spread = 0.1
        self.margin = 1.1
        """Times that a step with rows and chunks takes what is predicted, but for one in 100."""
        self.even_margin = 1.02
        """The same of a step with rows alone."""
        self._times: StepTimes | None = prior

    @property
    def is_known(self) -> bool:
        """Whether anything is: one step may be a kernel that was compiled."""
        return len(self._first) >= _NUM_KNOWN

    @property
    def times(self) -> StepTimes:
        """What is known now."""
        if self._times is None:
            self._times = StepTimes(*self._theta)
        return self._times

    def learn(self, seconds: float, rows: int, context: int, tokens: int = 0, pairs: float = 0) -> None:
        """Take in a step that took so long."""
        if seconds <= 0 or not (rows or tokens):
            return
        if len(self._first) < _NUM_FIRST:
            self._first.append(seconds / self._prior.seconds(rows, context, tokens, pairs))
            self._times = self._prior.scaled(median(self._first))
            self._theta = list(msgspec.structs.astuple(self._times))
            self._scale = self._theta
        elif not tokens:
            self._num_passed += 1
            if self._num_passed % _EVERY:  # the many say what one says
                return
        expected = self.times.seconds(rows, context, tokens, pairs)
        ratio = seconds / max(expected, 1e-9)
        if rows and ratio < _STALLED:
            if tokens:
                self.margin = _moved(self.margin, ratio, 0.01)
            else:
                self.even_margin = _moved(self.even_margin, ratio, 0.005)
        error = abs(ratio - 1)
        weight = min(1.0, _OUTLIER * self._spread / error) if error else 1.0
        self._spread += 0.05 * (min(error, 2 * _OUTLIER * self._spread) - self._spread)
        self._spread = max(self._spread, 0.01)
        beyond = max(0, rows + tokens - FULL)
        x = [1.0, rows, context, 1.0 if tokens else 0.0, tokens, beyond, pairs]
        self._kinds[tokens > 0].add([value / seconds for value in x], weight, _KEEP[tokens > 0])
        if len(self._first) == _NUM_FIRST:
            self._solve()

    def _solve(self) -> None:
        """Improve each number in turn, as the others stand, near what is known."""
        theta, new, kinds = self._theta, list(self._theta), self._kinds.values()
        for _ in range(2):
            for i, known in enumerate(theta):
                anchor = _ANCHOR / max(known, self._scale[i]) ** 2
                weight, wanted = anchor, anchor * known
                for seen in kinds:
                    row = seen.products[i]
                    weight += row[i]
                    wanted += seen.sums[i] + row[i] * new[i] - sum(map(mul, row, new))
                new[i] = max(wanted / weight, 0.0)
        self._theta, self._times = new, None


def _moved(margin: float, ratio: float, step: float) -> float:
    return min(max(margin + (step if ratio > margin else -step / _LET_PASS), 1.0), 1.5)


@dataclass(slots=True)
class _Seen:
    """The sums of least squares over steps of one kind, each a row that should come to 1."""

    products: list[list[float]]
    sums: list[float]

    @classmethod
    def of(cls, size: int) -> _Seen:
        return cls([[0.0] * size for _ in range(size)], [0.0] * size)

    def add(self, x: list[float], weight: float, keep: float) -> None:
        self.sums = [keep * old + weight * value for old, value in zip(self.sums, x, strict=True)]
        self.products = [
            [keep * old + left * right for old, right in zip(row, x, strict=True)]
            for row, left in zip(self.products, [weight * value for value in x], strict=True)
        ]
