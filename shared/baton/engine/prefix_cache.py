"""The index of known KV: chained block hash -> block.

What a hash covers is said in `baton.block_hash`, which routers use too.

The index owns no memory: references are the pool's, and a block is forgotten when the pool evicts it. It knows
nothing of sequences.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from baton.engine.block_pool import BlockPool

CacheEvent = tuple[Literal["stored", "evicted"], bytes]


class PrefixCache:
    """Find and remember blocks by hash; hash and block are a bijection."""

    __slots__ = ("_block_of", "_events", "_hash_of", "_pool", "_untold", "num_hits", "num_queries", "record_events")

    def __init__(self, pool: BlockPool, *, record_events: bool = False) -> None:
        self._pool = pool
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._events: list[CacheEvent] = []
        self._untold: set[bytes] = set()
        self.record_events = record_events
        """Whether to keep what changes for `drain_events`; only with a reader, else the list would grow."""
        self.num_queries = 0
        """Tokens looked up at admission."""
        self.num_hits = 0
        """Tokens of them that were found."""
        pool.on_evict = self._forget

    def __len__(self) -> int:
        return len(self._block_of)

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self._block_of

    def lookup(self, hashes: Iterable[bytes]) -> list[int]:
        """Find the blocks of the longest known beginning of a chain. Takes no references."""
        block_ids: list[int] = []
        block_of = self._block_of
        for block_hash in hashes:
            block_id = block_of.get(block_hash)
            if block_id is None:
                break
            block_ids.append(block_id)
        return block_ids

    def insert(self, block_hash: bytes, block_id: int, *, is_told: bool = True) -> None:
        """Make a held block findable; `is_told`: readers of the events hear of it.

        A hash that is known under another block keeps that one: block tables are append-only, so the second
        block stays where it is, unknown, and is free once released.
        """
        if block_hash in self._block_of:
            return
        assert block_id not in self._hash_of, f"block {block_id} already has other content"
        self._pool.mark(block_id)
        self._block_of[block_hash] = block_id
        self._hash_of[block_id] = block_hash
        if not is_told:
            self._untold.add(block_hash)
        elif self.record_events:
            self._events.append(("stored", block_hash))

    def clear(self) -> None:
        """Forget everything, as when weights change; cached blocks become free, held ones stay held."""
        for block_id in list(self._hash_of):
            self._forget(block_id)
            self._pool.unmark(block_id)

    def hashes(self) -> list[bytes]:
        """All known hashes that are told: the snapshot to which later events apply."""
        return [block_hash for block_hash in self._block_of if block_hash not in self._untold]

    def drain_events(self) -> list[CacheEvent]:
        """Take what was stored and evicted since the last call, in order."""
        events, self._events = self._events, []
        return events

    def _forget(self, block_id: int) -> None:
        block_hash = self._hash_of.pop(block_id)
        del self._block_of[block_hash]
        if block_hash in self._untold:
            self._untold.remove(block_hash)
        elif self.record_events:
            self._events.append(("evicted", block_hash))
