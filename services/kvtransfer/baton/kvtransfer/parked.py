"""FETCHes that came before the ticket they belong to was offered: few, small, and for a short time."""

from __future__ import annotations

from collections.abc import Callable

from baton.kvtransfer.lease import LeaseBook
from baton.kvtransfer.settings import TransferConfig
from baton.kvtransfer.wire import Key, Sealed


class ParkedFetches:
    """The newest FETCH of each peer for each ticket."""

    def __init__(self, config: TransferConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._sealed: dict[tuple[Key, bytes], Sealed] = {}
        self._nbytes = 0
        self._leases: LeaseBook[tuple[Key, bytes]] = LeaseBook(config.park_s, clock)

    def __len__(self) -> int:
        return len(self._sealed)

    def add(self, key: Key, peer: bytes, fetch: Sealed) -> bool:
        """Keep a FETCH, in place of the one before; repeating it does not make it wait longer. False: no room."""
        is_first = not self._drop(key, peer)
        nbytes = self._nbytes + len(fetch.body)
        if len(self._sealed) >= self._config.max_parked or nbytes > self._config.max_parked_nbytes:
            self._leases.end((key, peer))
            return False
        self._sealed[key, peer] = fetch
        self._nbytes = nbytes
        if is_first:
            self._leases.renew((key, peer))
        return True

    def take(self, key: Key) -> list[tuple[bytes, Sealed]]:
        """Take out what waits for a ticket: peers and their FETCHes."""
        waiting = [(peer, sealed) for (its, peer), sealed in self._sealed.items() if its == key]
        for peer, _ in waiting:
            self.cancel(key, peer)
        return waiting

    def cancel(self, key: Key, peer: bytes) -> bool:
        """Forget a FETCH; False: there was none."""
        self._leases.end((key, peer))
        return self._drop(key, peer)

    def sweep(self) -> list[tuple[Key, bytes]]:
        """Forget those whose ticket did not come in time, and return whose they were."""
        late = self._leases.sweep()
        for key, peer in late:
            self._drop(key, peer)
        return late

    def seconds_left(self) -> float:
        """Seconds until a sweep can find something."""
        return self._leases.seconds_left()

    def _drop(self, key: Key, peer: bytes) -> bool:
        fetch = self._sealed.pop((key, peer), None)
        self._nbytes -= 0 if fetch is None else len(fetch.body)
        return fetch is not None
