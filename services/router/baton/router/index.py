"""Which worker, or store of a host, has which blocks: the hashes of each, kept from its log.

The log comes through Redis or over the worker's socket, whichever answers; entries are numbered, so either may repeat or
overtake the other. A hint, never a promise: what it says wrong costs time, not tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from baton.messages import Blocks


@dataclass(slots=True)
class _WorkerBlocks:
    incarnation: str
    sequence: int = 0
    hashes: set[bytes] = field(default_factory=set)


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

    def apply(self, entry: Blocks) -> bool:
        """Take an entry or snapshot of a worker's log; whether it was one of a live worker, new, and the next."""
        worker = self._workers.get(entry.worker_id)
        if worker is None or worker.incarnation != entry.incarnation:
            return False
        if entry.is_snapshot:
            if entry.sequence < worker.sequence:
                return False
            worker.hashes = set(entry.stored)
        else:
            if entry.sequence <= worker.sequence:
                return False
            if entry.sequence != worker.sequence + 1:  # what was known stays until a snapshot comes
                self.wants_snapshot.add(entry.worker_id)
                return False
            worker.hashes.difference_update(entry.evicted)
            worker.hashes.update(entry.stored)
        worker.sequence = entry.sequence
        return True

    def num_stored(self, store_id: str, hashes: Sequence[bytes], num_cached: int) -> int:
        """Count the blocks that follow on a chain's first `num_cached` and that a store has."""
        return self.num_cached(store_id, hashes[num_cached:]) if store_id else 0

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
