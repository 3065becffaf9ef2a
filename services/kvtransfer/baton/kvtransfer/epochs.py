"""Which tickets are open, and why a message of any other is dropped."""

from __future__ import annotations

from collections.abc import Callable

from baton.kvtransfer.lease import LeaseBook
from baton.kvtransfer.wire import Key

REMEMBERED_S = 60.0
"""How long an ended ticket is known from one that never was."""


class Epochs:
    """Remember each request's newest open epoch, and the tickets that ended lately."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._newest: dict[bytes, int] = {}
        self._ended: LeaseBook[Key] = LeaseBook(REMEMBERED_S, clock)

    def open(self, key: Key) -> bool:
        """Note an open ticket; False: the request has a newer one."""
        request_id, epoch = key
        if self._newest.get(request_id, -1) > epoch:
            return False
        self._newest[request_id] = epoch
        return True

    def end(self, key: Key) -> None:
        """Note that a ticket has ended."""
        request_id, epoch = key
        if self._newest.get(request_id) == epoch:
            del self._newest[request_id]
        self._ended.renew(key)

    def why_unknown(self, key: Key) -> str:
        """Name the reason to drop a message of a ticket that is not open: old_epoch, late or stranger."""
        newest = self._newest.get(key[0])
        if newest is not None and key[1] < newest:
            return "old_epoch"
        return "late" if key in self._ended else "stranger"

    def sweep(self) -> None:
        """Forget what ended long ago."""
        self._ended.sweep()
