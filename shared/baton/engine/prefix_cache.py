"""The index of known KV: chained block hash -> block.

A block's hash covers, through the chain, every token before it, and, through the root, everything else that changes
the KV: model, revision, LoRA, KV dtype, layout, tenant salt. The root is also the BLAKE2b key of every block, so
without the key of the deployment nobody can compute a hash, or search for two prompts that share one.

The index owns no memory: references are the pool's, and a block is forgotten when the pool evicts it. It knows
nothing of sequences.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from hashlib import blake2b
from typing import Literal

from baton.engine.block_pool import BlockPool

HASH_NBYTES = 16
_NO_PARENT = bytes(HASH_NBYTES)
_TOKEN_NBYTES = array("I").itemsize
assert _TOKEN_NBYTES == 4, "the hashes need 4-byte token ids"

CacheEvent = tuple[Literal["stored", "evicted"], bytes]


def cache_root(key: bytes, *parts: str | bytes) -> bytes:
    """Make the start of the hash chains, 32 bytes, from everything but tokens that changes the KV.

    `key` is a secret of the deployment, at most 64 bytes. Each part is preceded by its length and kind, so no two
    lists of parts read alike.
    """
    digest = blake2b(key=key, digest_size=32, person=b"baton kv root")
    for part in parts:
        encoded = part.encode() if isinstance(part, str) else part
        digest.update(b"s" if isinstance(part, str) else b"b")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()


def hash_block(root: bytes, parent: bytes | None, token_ids: Iterable[int]) -> bytes:
    """Give the hash of one block after `parent` (None: it is the first). Hash whole chains with `hash_blocks`."""
    return blake2b((parent or _NO_PARENT) + _encode(token_ids), key=root, digest_size=HASH_NBYTES).digest()


def hash_blocks(root: bytes, hashes: list[bytes], token_ids: list[int], block_size: int) -> None:
    """Append the hashes of the full blocks of `token_ids` that `hashes` lacks."""
    first, last = len(hashes), len(token_ids) // block_size
    if first >= last:
        return
    encoded = _encode(token_ids[first * block_size : last * block_size])
    nbytes = block_size * _TOKEN_NBYTES
    parent = hashes[-1] if hashes else _NO_PARENT
    for at in range(0, len(encoded), nbytes):
        parent = blake2b(parent + encoded[at : at + nbytes], key=root, digest_size=HASH_NBYTES).digest()
        hashes.append(parent)


def _encode(token_ids: Iterable[int]) -> bytes:
    """Give 4 little-endian bytes a token."""
    encoded = array("I", token_ids)
    if sys.byteorder == "big":
        encoded.byteswap()
    return encoded.tobytes()


class PrefixCache:
    """Find and remember blocks by hash; hash and block are a bijection."""

    __slots__ = ("_block_of", "_events", "_hash_of", "_pool", "num_hits", "num_queries", "record_events")

    def __init__(self, pool: BlockPool, *, record_events: bool = False) -> None:
        self._pool = pool
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._events: list[CacheEvent] = []
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
        """Give the blocks of the longest known beginning of a chain. Takes no references."""
        block_ids: list[int] = []
        block_of = self._block_of
        for block_hash in hashes:
            block_id = block_of.get(block_hash)
            if block_id is None:
                break
            block_ids.append(block_id)
        return block_ids

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """Look up and share in one step: the caller owns a reference to each block given."""
        block_ids = self.lookup(hashes)
        self._pool.share(block_ids)
        return block_ids

    def insert(self, block_hash: bytes, block_id: int) -> None:
        """Make a held block findable.

        A hash that is known under another block keeps that one: block tables are append-only, so the second
        block stays where it is, unknown, and is free once released.
        """
        if block_hash in self._block_of:
            return
        assert block_id not in self._hash_of, f"block {block_id} already has other content"
        self._pool.mark(block_id)
        self._block_of[block_hash] = block_id
        self._hash_of[block_id] = block_hash
        if self.record_events:
            self._events.append(("stored", block_hash))

    def clear(self) -> None:
        """Forget everything, as when weights change; cached blocks become free, held ones stay held."""
        for block_id in list(self._hash_of):
            self._forget(block_id)
            self._pool.unmark(block_id)

    def hashes(self) -> list[bytes]:
        """Give all known hashes: the snapshot to which later events apply."""
        return list(self._block_of)

    def drain_events(self) -> list[CacheEvent]:
        """Give what was stored and evicted since the last call, in order."""
        events, self._events = self._events, []
        return events

    def _forget(self, block_id: int) -> None:
        block_hash = self._hash_of.pop(block_id)
        del self._block_of[block_hash]
        if self.record_events:
            self._events.append(("evicted", block_hash))
