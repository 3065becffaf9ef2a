"""Lane: what one worker has been asked to compute and to send on, in predicted seconds.

A worker computes prompts one after another, and its link takes their KV one after another, each from when its prompt is
begun. So what is left is known between reports too: it shrinks while the first is computed, and each that is done says
anew where the worker stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

_MOST = 64
"""Transfers that are followed one by one; of those behind only the sum counts."""


@dataclass(slots=True)
class _Transfer:
    seconds: float
    work_s: float
    """Of its prompt; 0: that is computed."""


class Lane:
    """One worker's work, by request id, in its order. Times are of one clock, given."""

    __slots__ = ("_arrived_at", "_began_at", "_sends", "_work", "_work_s")

    def __init__(self) -> None:
        self._work: dict[str, float] = {}
        self._work_s = 0.0
        self._sends: dict[str, _Transfer] = {}
        self._began_at = self._arrived_at = 0.0
        """When the first prompt was begun, and when the link had sent the last transfer that arrived."""

    def add(self, request_id: str, work_s: float, send_s: float | None, now: float) -> None:
        """Count in a prompt, and its way to another worker if it has one."""
        if not self._work:
            self._began_at = now
        self._work[request_id] = work_s
        self._work_s += work_s
        if send_s is not None:
            self._sends[request_id] = _Transfer(send_s, work_s)

    def computed(self, request_id: str, now: float) -> None:
        """Count a prompt out: it is computed, or given up."""
        work_s = self._work.pop(request_id, None)
        if work_s is None:
            return
        self._work_s = self._work_s - work_s if self._work else 0.0
        self._began_at = now
        if request_id in self._sends:
            self._sends[request_id].work_s = 0.0

    def sent(self, request_id: str, now: float) -> float:
        """Count a transfer out; return when the one before it had arrived."""
        before = self._arrived_at
        if self._sends.pop(request_id, None) is not None:
            self._arrived_at = now
        return before

    def drop(self, request_id: str, now: float) -> None:
        """Forget a request."""
        self.computed(request_id, now)
        self._sends.pop(request_id, None)

    def work_left(self, now: float) -> float:
        """Predict the seconds until all prompts are computed."""
        return max(self._work_s - self._done(now), 0.0)

    def link_left(self, now: float) -> float:
        """Predict the seconds until the link has sent all that it was asked to."""
        work = -self._done(now)
        link, is_first = 0.0, True
        for send in islice(self._sends.values(), _MOST):
            begun, work = max(work, 0.0), work + send.work_s
            seconds = send.seconds
            if is_first and not begun:  # it is on the way
                since = max(self._arrived_at, self._began_at if send.work_s else 0.0)
                seconds = max(seconds - max(now - since, 0.0), 0.1 * seconds)
            is_first = False
            link = max(max(link, begun) + seconds, work)
        if len(self._sends) > _MOST:
            link += sum(send.seconds for send in islice(self._sends.values(), _MOST, None))
        return link

    def _done(self, now: float) -> float:
        """Say how much of the first prompt is done; most of it at most, however long it takes."""
        first = next(iter(self._work.values()), 0.0)
        return min(max(now - self._began_at, 0.0), 0.9 * first)
