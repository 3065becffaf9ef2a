"""FETCHes that came before the ticket they belong to was offered: few, small, and for as long as it may still come."""

from __future__ import annotations

from collections.abc import Callable

from baton.kvtransfer.lease import LeaseBook
from baton.kvtransfer.settings import MIB
from baton.kvtransfer.wire import Key

MAX_PARKED = 1024
MAX_PARKED_NBYTES = 64 * MIB


class ParkedFetches:
    """The newest FETCH of each peer for each ticket: its header.

    One is kept while its peer repeats it, until the leg has taken in all that came to it up to `park_s` later: a step
    that takes long, before which the leg cannot look, costs no fetch.
    """

    def __init__(self, park_s: float, lease_s: float, clock: Callable[[], float]) -> None:
        self._park_s = park_s
        self._clock = clock
        self._headers: dict[tuple[Key, bytes], tuple[bytes, float]] = {}
        """With the time at which the first one came, which is also their order."""
        self._nbytes = 0
        self._leases: LeaseBook[tuple[Key, bytes]] = LeaseBook(lease_s, clock)

    def __len__(self) -> int:
        return len(self._headers)

    def add(self, key: Key, peer: bytes, header: bytes) -> bool:
        """Keep a FETCH, in place of the one before; repeating it does not make it wait longer. False: no room."""
        before, since = self._headers.get((key, peer), (b"", self._clock()))
        self._headers[key, peer] = header, since
        self._nbytes += len(header) - len(before)
        if len(self._headers) > MAX_PARKED or self._nbytes > MAX_PARKED_NBYTES:
            self.cancel(key, peer)
            return False
        self._leases.renew((key, peer))
        return True

    def take(self, key: Key) -> list[tuple[bytes, bytes]]:
        """Take out what waits for a ticket: peers and their FETCHes."""
        waiting = [(peer, header) for (its, peer), (header, _) in self._headers.items() if its == key]
        for peer, _ in waiting:
            self.cancel(key, peer)
        return waiting

    def cancel(self, key: Key, peer: bytes) -> bool:
        """Forget a FETCH; False: there was none."""
        self._leases.end((key, peer))
        header, _ = self._headers.pop((key, peer), (b"", 0.0))
        self._nbytes -= len(header)
        return bool(header)

    def sweep(self, looked_at: float) -> list[tuple[Key, bytes]]:
        """Forget those that nobody repeats, and those whose ticket did not come; return whose the latter were.

        `looked_at`: what came to the leg before is offered.
        """
        for key, peer in self._leases.sweep():
            self.cancel(key, peer)
        late: list[tuple[Key, bytes]] = []
        while self._headers:
            (key, peer), (_, since) = next(iter(self._headers.items()))
            if since + self._park_s > looked_at:
                break
            self.cancel(key, peer)
            late.append((key, peer))
        return late

    def seconds_left(self) -> float:
        """Seconds until a sweep can find something that is no longer repeated."""
        return self._leases.seconds_left()
