"""FETCHes that came before the ticket they belong to was offered: few, small, and for a short time."""

from __future__ import annotations

from collections.abc import Callable

from baton.kvtransfer.lease import LeaseBook
from baton.kvtransfer.settings import MIB
from baton.kvtransfer.wire import Key

MAX_PARKED = 1024
MAX_PARKED_NBYTES = 64 * MIB


class ParkedFetches:
    """The newest FETCH of each peer for each ticket: its header."""

    def __init__(self, park_s: float, clock: Callable[[], float]) -> None:
        self._headers: dict[tuple[Key, bytes], bytes] = {}
        self._nbytes = 0
        self._leases: LeaseBook[tuple[Key, bytes]] = LeaseBook(park_s, clock)

    def __len__(self) -> int:
        return len(self._headers)

    def add(self, key: Key, peer: bytes, header: bytes) -> bool:
        """Keep a FETCH, in place of the one before; repeating it does not make it wait longer. False: no room."""
        before = self._headers.get((key, peer))
        self._headers[key, peer] = header
        self._nbytes += len(header) - len(before or b"")
        if len(self._headers) > MAX_PARKED or self._nbytes > MAX_PARKED_NBYTES:
            self.cancel(key, peer)
            return False
        if before is None:
            self._leases.renew((key, peer))
        return True

    def take(self, key: Key) -> list[tuple[bytes, bytes]]:
        """Take out what waits for a ticket: peers and their FETCHes."""
        waiting = [(peer, header) for (its, peer), header in self._headers.items() if its == key]
        for peer, _ in waiting:
            self.cancel(key, peer)
        return waiting

    def cancel(self, key: Key, peer: bytes) -> bool:
        """Forget a FETCH; False: there was none."""
        self._leases.end((key, peer))
        header = self._headers.pop((key, peer), b"")
        self._nbytes -= len(header)
        return bool(header)

    def sweep(self) -> list[tuple[Key, bytes]]:
        """Forget those whose ticket did not come in time, and return whose they were."""
        late = self._leases.sweep()
        for key, peer in late:
            self.cancel(key, peer)
        return late

    def seconds_left(self) -> float:
        """Seconds until a sweep can find something."""
        return self._leases.seconds_left()
