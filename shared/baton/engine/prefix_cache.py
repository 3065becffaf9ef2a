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

    __slots__ = (
        "_block_of",
        "_events",
        "_given_up",
        "_hash_of",
        "_kept",
        "_pool",
        "_saves",
        "_to_save",
        "_untold",
        "num_hits",
        "num_queries",
        "record_events",
    )

    def __init__(self, pool: BlockPool, *, record_events: bool = False) -> None:
        self._pool = pool
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._events: list[CacheEvent] = []
        self._untold: set[bytes] = set()
        self._saves: Literal["nothing", "evicted", "stored"] = "nothing"
        self._to_save: list[tuple[bytes, int]] = []
        self._given_up: list[int] = []
        self._kept: set[bytes] = set()
        self.record_events = record_events
        """Whether to keep what changes for `drain_events`; only with a reader, else the list would grow."""
        self.num_queries = 0
        """Tokens looked up at admission."""
        self.num_hits = 0
        """Tokens of them that were found."""
        pool.on_evict = self._evict

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
        self._kept.discard(block_hash)
        if self._saves == "stored":
            self._to_save.append((block_hash, block_id))
        if not is_told:
            self._untold.add(block_hash)
        elif self.record_events:
            self._events.append(("stored", block_hash))

    def clear(self) -> None:
        """Forget everything, as when weights change; cached blocks become free, held ones stay held."""
        for block_id in list(self._hash_of):
            self._forget(block_id)
            self._pool.unmark(block_id)
        for block_hash in list(self._kept):
            self.forget_kept(block_hash)

    def hashes(self) -> list[bytes]:
        """All known hashes that are told: the snapshot to which later events apply."""
        return [block_hash for block_hash in self._block_of if block_hash not in self._untold] + list(self._kept)

    def drain_events(self) -> list[CacheEvent]:
        """Take what was stored and evicted since the last call, in order."""
        events, self._events = self._events, []
        return events

    # -- for a tier behind the device ---------------------------------------------------------------------

    def watch_for_tier(self, *, keeps_evicted: bool) -> None:
        """Note from now on what a tier is to save: what is evicted, which then stays told of, or what is inserted."""
        self._saves = "evicted" if keeps_evicted else "stored"

    def take_for_tier(self) -> tuple[list[tuple[bytes, int]], list[int]]:
        """Take hashes and blocks to save, and all blocks that were given up, since the last call."""
        to_save, self._to_save = self._to_save, []
        given_up, self._given_up = self._given_up, []
        return to_save, given_up

    def forget_kept(self, block_hash: bytes) -> None:
        """Note that an evicted block is not in the tier, or no longer."""
        if block_hash in self._kept:
            self._kept.remove(block_hash)
            self._note_evicted(block_hash)

    def _evict(self, block_id: int) -> None:
        if self._saves != "evicted":
            self._forget(block_id)
            return
        self._given_up.append(block_id)
        block_hash, is_told = self._take_out(block_id)
        self._to_save.append((block_hash, block_id))
        if is_told:
            self._kept.add(block_hash)

    def _forget(self, block_id: int) -> None:
        block_hash, is_told = self._take_out(block_id)
        if self._saves == "stored":
            self._given_up.append(block_id)
        if is_told:
            self._note_evicted(block_hash)

    def _take_out(self, block_id: int) -> tuple[bytes, bool]:
        """Part a block from its hash; return that, and whether readers of the events know it."""
        block_hash = self._hash_of.pop(block_id)
        del self._block_of[block_hash]
        if block_hash not in self._untold:
            return block_hash, True
        self._untold.remove(block_hash)
        return block_hash, False

    def _note_evicted(self, block_hash: bytes) -> None:
        if self.record_events:
            self._events.append(("evicted", block_hash))
