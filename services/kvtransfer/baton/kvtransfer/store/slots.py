"""The places of a store's arena: which block lies where, who reads or writes there, and which one goes next.

Every slot is in exactly one of four conditions:

    free ── grant ──▶ writing ── commit ──▶ known, of no use now ◀── hold, let_go ──▶ known and read
      ▲                  └── give_up ──▶ free              └── the oldest, when space is wanted ──▶ free

So free + writing + known + nameless = total, always; nameless are those that are read still and were found bad. A block's key is
its layout and its name. Nothing here waits, and nothing knows who the readers and writers are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple


class Found(NamedTuple):
    """Where a block lies, and the checksum of its bytes as its writer took it."""

    slot: int
    checksum: bytes


class Slots:
    """Hand out slots 0 to num_slots - 1, find blocks in them, evict the least recently used."""

    __slots__ = (
        "_checksums",
        "_free",
        "_key_of",
        "_readers",
        "_slot_of",
        "_unused",
        "_writing",
        "num_slots",
        "on_change",
    )

    def __init__(self, num_slots: int, on_change: Callable[[bytes], None] = lambda key: None) -> None:
        """`on_change` hears the key of each block that became known, or is not known any more."""
        self.num_slots = num_slots
        self.on_change = on_change
        self._free = list(range(num_slots - 1, -1, -1))
        self._slot_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._checksums: dict[int, bytes] = {}
        self._readers: dict[int, int] = {}
        """Of slots that are read, how often."""
        self._unused: OrderedDict[int, None] = OrderedDict()
        """Known slots that nobody reads, least recently used first."""
        self._writing: set[int] = set()

    def __contains__(self, key: bytes) -> bool:
        return key in self._slot_of

    @property
    def num_free(self) -> int:
        """Slots without content."""
        return len(self._free)

    @property
    def num_writing(self) -> int:
        """Slots that somebody writes."""
        return len(self._writing)

    @property
    def num_known(self) -> int:
        """Slots with a block that can be found."""
        return len(self._slot_of)

    @property
    def num_read(self) -> int:
        """Slots that somebody reads."""
        return len(self._readers)

    def keys(self) -> list[bytes]:
        """All known keys."""
        return list(self._slot_of)

    def hold(self, key: bytes) -> Found | None:
        """Find a block and keep it where it is until `let_go`; None: it is not here."""
        slot = self._slot_of.get(key)
        if slot is None:
            return None
        self._unused.pop(slot, None)
        self._readers[slot] = self._readers.get(slot, 0) + 1
        return Found(slot, self._checksums[slot])

    def let_go(self, slots: Sequence[int]) -> None:
        """End one reading of each; of a chain the end is then older than the beginning, and is evicted before it."""
        for slot in reversed(slots):
            left = self._readers[slot] - 1
            if left:
                self._readers[slot] = left
                continue
            del self._readers[slot]
            if slot in self._key_of:
                self._unused[slot] = None
            else:
                self._free.append(slot)

    def grant(self, num_slots: int) -> list[int]:
        """Take slots to write in, as many as are free or can be made so; their content gets its key with `commit`."""
        granted: list[int] = []
        while len(granted) < num_slots and (self._free or self._evict()):
            granted.append(self._free.pop())
        self._writing.update(granted)
        return granted

    def commit(self, slots: Sequence[int], keys: Sequence[bytes], checksums: Sequence[bytes]) -> list[bytes]:
        """Make written blocks findable, and give back the slots of those that are known already; return the new keys."""
        new = []
        for slot, key, checksum in zip(reversed(slots), reversed(keys), reversed(checksums), strict=True):
            self._writing.remove(slot)
            if key in self._slot_of:
                self._free.append(slot)
                continue
            self._slot_of[key], self._key_of[slot], self._checksums[slot] = slot, key, checksum
            self._unused[slot] = None
            new.append(key)
            self.on_change(key)
        return new[::-1]

    def give_up(self, slots: Iterable[int]) -> None:
        """Take back slots that were not written to their end."""
        for slot in slots:
            self._writing.remove(slot)
            self._free.append(slot)

    def forget(self, slot: int) -> bytes | None:
        """Have a slot that is read not found any more, as what is in it is not what its writer said; return its key, if it had one."""
        assert slot in self._readers, f"slot {slot} is not read"
        key = self._key_of.pop(slot, None)
        if key is not None:
            del self._slot_of[key], self._checksums[slot]
            self.on_change(key)
        return key

    def drop_unused(self, prefix: bytes) -> None:
        """Forget the blocks that nobody reads and whose keys begin so."""
        for slot in [slot for slot in self._unused if self._key_of[slot].startswith(prefix)]:
            self._drop(slot)

    def verify(self) -> None:
        """Count everything anew. For tests.

        Raises:
            AssertionError: a slot is lost, or in two conditions at once.
        """
        known, nameless = set(self._key_of), set(self._readers) - set(self._key_of)
        parts = (set(self._free), self._writing, known, nameless)
        assert len(self._free) == len(parts[0]), "a slot is free twice"
        assert len(set().union(*parts)) == sum(map(len, parts)), "a slot in two conditions"
        assert sum(map(len, parts)) == self.num_slots, "a slot is lost"
        assert {self._slot_of[key]: key for key in self._slot_of} == self._key_of, "keys and slots are not one to one"
        assert set(self._unused) == known - set(self._readers), "a known slot is neither read nor to be evicted"
        assert set(self._checksums) == known, "a checksum too many, or one is missing"

    def _evict(self) -> bool:
        """Forget the least recently used block; whether there was one."""
        if not self._unused:
            return False
        self._drop(next(iter(self._unused)))
        return True

    def _drop(self, slot: int) -> None:
        del self._unused[slot]
        key = self._key_of.pop(slot)
        del self._slot_of[key], self._checksums[slot]
        self._free.append(slot)
        self.on_change(key)
