"""Which worker has which blocks: each worker's cached block hashes, kept from its log.

The log comes through Redis or over the worker's socket, whichever answers; entries are numbered, so either may repeat or
overtake the other. A hint, never a promise: what it says wrong costs time, not tokens.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from baton.messages import Blocks


class Applied(enum.Enum):
    """What an entry did."""

    TAKEN = "taken"
    KNOWN = "known"
    GAP = "gap"
    """Entries before it are missing: a snapshot is needed. What was known stays until then."""
    FOREIGN = "foreign"
    """Of a worker or incarnation that is not live."""


class _WorkerBlocks:
    __slots__ = ("hashes", "incarnation", "sequence")

    def __init__(self, incarnation: str) -> None:
        self.incarnation = incarnation
        self.sequence = 0
        self.hashes: set[bytes] = set()


class PrefixIndex:
    """Block hashes by worker."""

    def __init__(self) -> None:
        self._workers: dict[str, _WorkerBlocks] = {}
        self.wants_snapshot: set[str] = set()
        """Workers whose log has a gap; whoever reads the registry clears it."""

    def __len__(self) -> int:
        return sum(len(worker.hashes) for worker in self._workers.values())

    def expect(self, worker_id: str, incarnation: str) -> None:
        """Begin (or go on) to follow a live worker; another incarnation starts with nothing."""
        self.wants_snapshot.add(worker_id)
        known = self._workers.get(worker_id)
        if known is None or known.incarnation != incarnation:
            self._workers[worker_id] = _WorkerBlocks(incarnation)

    def forget(self, worker_id: str) -> None:
        """Drop a worker that is gone."""
        self._workers.pop(worker_id, None)
        self.wants_snapshot.discard(worker_id)

    def positions(self) -> dict[str, int]:
        """The last entry applied, by worker: where to read on."""
        return {worker_id: worker.sequence for worker_id, worker in self._workers.items()}

    def apply(self, entry: Blocks) -> Applied:
        """Take an entry or snapshot of a worker's log."""
        worker = self._workers.get(entry.worker_id)
        if worker is None or worker.incarnation != entry.incarnation:
            return Applied.FOREIGN
        if entry.is_snapshot:
            if entry.sequence < worker.sequence:
                return Applied.KNOWN
            worker.hashes = set(entry.stored)
            worker.sequence = entry.sequence
            return Applied.TAKEN
        if entry.sequence <= worker.sequence:
            return Applied.KNOWN
        if entry.sequence != worker.sequence + 1:
            self.wants_snapshot.add(entry.worker_id)
            return Applied.GAP
        worker.hashes.difference_update(entry.evicted)
        worker.hashes.update(entry.stored)
        worker.sequence = entry.sequence
        return Applied.TAKEN

    def num_cached(self, worker_id: str, hashes: Sequence[bytes]) -> int:
        """Count the blocks from the start of a chain that a worker has."""
        worker = self._workers.get(worker_id)
        if worker is None or not worker.hashes:
            return 0
        known = worker.hashes
        count = 0
        for block_hash in hashes:
            if block_hash not in known:
                break
            count += 1
        return count
