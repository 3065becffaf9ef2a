"""Turns: in which order tenants' sequences are served, so that one who asks for much delays only itself."""

from __future__ import annotations

from baton.protocol import Share

_NUM_KEPT = 1024
"""Tenants whose turns are remembered; those that lie behind say nothing more."""


class Turns:
    """Fair queueing: a sequence's turn comes when its tenant's earlier ones have had theirs, by work over weight.

    Turns are moments of a clock that stands at the turn served last. Who was away comes in at the present moment, before
    all that another tenant has queued for later. Nobody is told apart: every turn is 0, and arrival decides.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._next: dict[bytes, float] = {}
        """When each tenant's next sequence has its turn."""

    def take(self, share: Share, work: int) -> float:
        """Return the turn of a new sequence with so many tokens of work."""
        if not share.tenant:
            return 0.0
        turn = max(self._now, self._next.pop(share.tenant, 0.0))
        self._next[share.tenant] = turn + work / share.weight
        if len(self._next) > _NUM_KEPT:
            self._next = {tenant: at for tenant, at in self._next.items() if at > self._now}
        return turn

    def begin(self, turn: float) -> None:
        """Note that a sequence is served."""
        self._now = max(self._now, turn)
