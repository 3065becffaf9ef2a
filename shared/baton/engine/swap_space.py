"""A worker's own host memory behind its KV blocks (`--swap-space`): what the device has no more room for waits here.

It takes a block when the prefix cache gives it up, so it holds what the device does not: a small one is of use behind a
large cache. A block that came back and is given up again is still here, and is not copied a second time. The least recently
used goes first, ends of chains before their beginnings. No torch: the copies are given.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from baton.host_tier import Copy, Loaded, Lookup, SlotCopies, TierCounts
from baton.logs import get_logger

MAX_SAVING_NBYTES = 1 << 30
"""On their way out at a time, 20 ms of a link's: what is given up faster is lost, so that no step waits longer for it.
The largest steps of prompts give up about as much, and take ten times as long."""

log = get_logger("engine")


@dataclass(slots=True, eq=False)
class _Kept:
    """A block in a slot."""

    name: bytes
    slot: int
    checksum: bytes = b""
    """Known once it is there."""
    num_users: int = 0
    """Copies into and from it, and lookups: while there are any, the slot stays its own."""


@dataclass(slots=True, eq=False)
class _Found:
    """An answered lookup, which uses its blocks."""

    kept: list[_Kept]

    @property
    def num_blocks(self) -> int:
        return len(self.kept)


class SwapSpace:
    """A `HostTier` over slots of this process."""

    saves: Literal["evicted", "computed"] = "evicted"

    def __init__(self, copies: SlotCopies, block_nbytes: int) -> None:
        self._copies = copies
        self._max_saving = max(1, MAX_SAVING_NBYTES // block_nbytes)
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()  # least recently used first
        self._saving: deque[tuple[Copy, list[_Kept]]] = deque()
        self._num_saving = 0
        self._loading: deque[tuple[_Found, int, Copy]] = deque()
        self._free: list[int] = []
        self._num_seen = 0  # slots that were pinned when last looked
        self._dropped: list[bytes] = []
        self._num_saved = self._num_loaded = self._num_damaged = 0

    @property
    def is_busy(self) -> bool:
        """Whether a load is on its way; lookups are answered at once."""
        return bool(self._loading)

    def save(self, names: Sequence[bytes], block_ids: Sequence[int]) -> None:
        """Start copying out what is not here, as far as there are slots and the link keeps up."""
        self._settle()
        fresh: list[_Kept] = []
        from_blocks: list[int] = []
        for name, block_id in zip(names, block_ids, strict=True):
            if name in self._kept:
                self._kept.move_to_end(name)
            elif (slot := self._take_slot()) is None:
                self._dropped.append(name)
            else:
                self._kept[name] = kept = _Kept(name, slot, num_users=1)
                self._num_saving += 1
                fresh.append(kept)
                from_blocks.append(block_id)
        if fresh:
            self._saving.append((self._copies.save(from_blocks, [kept.slot for kept in fresh]), fresh))
            self._settle()

    def guard(self, block_ids: Sequence[int]) -> None:
        """Put the copies that read these blocks before all that is started from here on."""
        self._copies.guard(block_ids)

    def look_up(self, names: Sequence[bytes]) -> Lookup:
        """Find the longest beginning that is here, or on its way; answered at once."""
        found: list[_Kept] = []
        for name in names:
            kept = self._kept.get(name)
            if kept is None:
                break
            kept.num_users += 1
            found.append(kept)
        for kept in reversed(found):
            self._kept.move_to_end(kept.name)
        return _Found(found)

    def drop(self, lookup: Lookup) -> None:
        """Let the slots of a lookup go."""
        assert isinstance(lookup, _Found)
        for kept in lookup.kept:
            self._leave(kept)

    def load(self, lookup: Lookup, block_ids: Sequence[int]) -> None:
        """Start copying back."""
        assert isinstance(lookup, _Found)
        slots = [kept.slot for kept in lookup.kept[: len(block_ids)]]
        self._loading.append((lookup, len(slots), self._copies.load(slots, block_ids)))

    def poll(self) -> list[Loaded]:
        """Compare the sums of what has come back; what is damaged is forgotten."""
        self._settle()
        ended: list[Loaded] = []
        while self._loading and self._has_come(*self._loading[0]):
            lookup, count, copy = self._loading.popleft()
            ended.append(Loaded(lookup, self._check(lookup.kept[:count], copy.sums())))
            self.drop(lookup)
        return ended

    def take_dropped(self) -> list[bytes]:
        """Take what was given up, or not taken."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def clear(self) -> None:
        """Forget all; a slot that is in use is free when that ends."""
        for kept in list(self._kept.values()):
            self._forget(kept)

    def counts(self) -> TierCounts:
        """What it holds and has done, for metrics."""
        return TierCounts(self._copies.num_slots, len(self._kept), self._num_saved, self._num_loaded, self._num_damaged)

    def close(self) -> None:
        """Wait for the copies that run, and let go of the memory."""
        self._copies.close()

    def _has_come(self, lookup: _Found, count: int, copy: Copy) -> bool:
        """Whether a load is done, and what its blocks are to be compared with is known: a save ends with the last of its
        blocks, each of which may be loaded before."""
        return copy.is_done() and all(kept.checksum for kept in lookup.kept[:count])

    def _settle(self) -> None:
        """Take in the sums of what has been copied out."""
        while self._saving and self._saving[0][0].is_done():
            copy, saved = self._saving.popleft()
            for kept, checksum in zip(saved, copy.sums(), strict=True):
                kept.checksum = checksum
                self._leave(kept)
            self._num_saving -= len(saved)
            self._num_saved += len(saved)

    def _take_slot(self) -> int | None:
        """Find a slot: a free one, one that was pinned meanwhile, or the least recently used that nobody uses."""
        if self._num_saving >= self._max_saving:
            return None
        if self._free:
            return self._free.pop()
        if self._num_seen < self._copies.num_slots:
            self._num_seen += 1
            return self._num_seen - 1
        oldest = next((kept for kept in self._kept.values() if not kept.num_users), None)
        if oldest is None:
            return None
        self._forget(oldest)
        return self._free.pop()

    def _forget(self, kept: _Kept) -> None:
        del self._kept[kept.name]
        self._dropped.append(kept.name)
        if not kept.num_users:
            self._free.append(kept.slot)

    def _leave(self, kept: _Kept) -> None:
        kept.num_users -= 1
        if not kept.num_users and self._kept.get(kept.name) is not kept:
            self._free.append(kept.slot)

    def _check(self, kept: list[_Kept], checksums: list[bytes]) -> int:
        """Count the blocks that are good, from the first on."""
        good = [each.checksum == checksum for each, checksum in zip(kept, checksums, strict=True)]
        damaged = [each for each, is_good in zip(kept, good, strict=True) if not is_good]
        if damaged:
            self._num_damaged += len(damaged)
            log.error("swap_space_damaged", num_blocks=len(damaged), first_slot=damaged[0].slot)
        for each in damaged:
            if self._kept.get(each.name) is each:
                self._forget(each)
        num_good = good.index(False) if damaged else len(good)
        self._num_loaded += num_good
        return num_good
