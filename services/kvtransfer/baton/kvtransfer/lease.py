"""Leases: what is kept only while somebody says that it is still wanted.

All leases of one book have the same length, so the order of renewal is the order of expiry, and every operation is
O(1). The clock is given; nothing here waits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from math import inf
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class LeaseBook(Generic[K]):
    """Keep the expiry of each lease; the first to expire stands first."""

    def __init__(self, lease_s: float, clock: Callable[[], float]) -> None:
        self.lease_s = lease_s
        self._clock = clock
        self._expires_at: OrderedDict[K, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._expires_at)

    def __contains__(self, key: K) -> bool:
        return key in self._expires_at

    def renew(self, key: K) -> None:
        """Grant the lease, or start it anew."""
        self._expires_at[key] = self._clock() + self.lease_s
        self._expires_at.move_to_end(key)

    def end(self, key: K) -> None:
        """Forget the lease, if it is held."""
        self._expires_at.pop(key, None)

    def sweep(self) -> list[K]:
        """End the leases whose time is over, and return their keys."""
        now = self._clock()
        expired: list[K] = []
        while self._expires_at:
            key, expires_at = next(iter(self._expires_at.items()))
            if expires_at > now:
                break
            del self._expires_at[key]
            expired.append(key)
        return expired

    def seconds_left(self) -> float:
        """Seconds until the next sweep can find something; infinite if no lease is held."""
        return next((max(0.0, at - self._clock()) for at in self._expires_at.values()), inf)
