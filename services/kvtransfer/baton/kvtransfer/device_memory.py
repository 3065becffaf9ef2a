"""Blocks that lie on a device: rings of pinned host memory that copies run into and out of, beside the engine.

Here is what may be copied when; the copies themselves are `Copies`, which on a GPU are `CudaCopies`. Every slot of a
ring takes one message's blocks. A slot to read from is free again when the sockets let go of it, one to write from
when its copy has ended: the rings are apart, so that a peer which does not read keeps nothing from landing.

Between GPUs of one host no bytes come to the host: the importer's device copies the blocks out of the exporter's, and each
device sums what it has, into a few bytes of pinned memory (a note).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np

from baton.kvtransfer.memory import Bytes, Landing, PeerMemory, Stage, copy_and_sum
from baton.kvtransfer.settings import MIB
from baton.kvtransfer.wire import DIGEST_NBYTES, MAX_BATCH_BLOCKS

RING_NBYTES = 64 * MIB
MIN_SLOTS = 4
ID_NBYTES = 4
NOTE_NBYTES = MAX_BATCH_BLOCKS * (ID_NBYTES + DIGEST_NBYTES)
"""A message's block ids, which the device reads, and their sums, which it writes."""
NOTES_PINNED = 16
"""At a time: pinning takes long."""


class Mark(Protocol):
    """A point in a device's work; a CUDA event is one."""

    def query(self) -> bool:
        """Whether the device has come to it."""

    def synchronize(self) -> None:
        """Wait until it has."""


class Copies(Protocol):
    """The blocks of a device, and how they are copied. `mark` is for the engine's thread alone."""

    @property
    def num_blocks(self) -> int: ...

    @property
    def block_nbytes(self) -> int: ...

    @property
    def is_shared(self) -> bool:
        """Whether other processes of the host can read the blocks where they lie."""

    def pin(self, nbytes: int) -> Bytes:
        """Make host memory that copies can reach without the host's help; kept as long as this object."""

    def mark(self) -> Mark:
        """Mark the end of what the engine has started."""

    def to_host(self, block_ids: Sequence[int], to: Bytes) -> Mark:
        """Start copying blocks side by side into pinned memory; what was computed is read as it is now."""

    def to_device(self, source: Bytes, block_ids: Sequence[int], after: Collection[Mark]) -> Mark:
        """Start copying from pinned memory into blocks, once the device has come to all of `after`."""

    def sum_up(self, block_ids: Sequence[int], note: Bytes) -> Mark:
        """Start summing blocks into a note, 16 bytes each; what was computed is read as it is now."""

    def from_peer(
        self, address: int, places: Sequence[int], block_ids: Sequence[int], note: Bytes, after: Collection[Mark]
    ) -> Mark:
        """Start copying blocks of another process's memory, once the device has come to all of `after`; then sum the copies."""


class DeviceMemory:
    """A `BlockMemory` over a device's copies."""

    def __init__(self, copies: Copies, *, frame_nbytes: int, ring_nbytes: int = RING_NBYTES) -> None:
        """Pin two rings of at least `ring_nbytes`; a slot takes the blocks of a message of `frame_nbytes`."""
        self.num_blocks = copies.num_blocks
        self.block_nbytes = copies.block_nbytes
        self.place_nbytes = MAX_BATCH_BLOCKS * self.block_nbytes if copies.is_shared else 0
        self.copies = copies
        self._slot_blocks = max(1, frame_nbytes // self.block_nbytes)
        slot_nbytes = self._slot_blocks * self.block_nbytes
        num_slots = max(MIN_SLOTS, -(-ring_nbytes // slot_nbytes))
        pinned = copies.pin(2 * num_slots * slot_nbytes).reshape(2, num_slots, slot_nbytes)
        self._reading: list[Bytes] = list(pinned[0])
        self._writing: list[Bytes] = list(pinned[1])
        self._written: deque[tuple[Mark, Bytes]] = deque()
        """Slots that are copied from, in the order in which the device does it."""
        self._notes: list[Bytes] = []
        self._marks: dict[int, Mark] = {}
        """What must end before a block is written."""

    def expect(self, block_ids: Sequence[int]) -> None:
        """Mark what the engine has started: a step in flight may still write for a sequence that ended."""
        if block_ids:
            self._marks.update(dict.fromkeys(block_ids, self.copies.mark()))

    def stage(self, block_ids: Sequence[int]) -> Stage | None:
        """Start a copy into a free slot."""
        if not self._reading:
            return None
        slot = self._reading.pop()
        taken = slot[: len(block_ids) * self.block_nbytes]
        return _Copied(self, slot, taken.data, self.copies.to_host(block_ids, taken))

    def land(self, block_ids: Sequence[int], blocks: Sequence[memoryview]) -> Landing:
        """Copy the bytes into slots, and start the copies from there."""
        checksums = []
        for first in range(0, len(block_ids), self._slot_blocks):
            ids = block_ids[first : first + self._slot_blocks]
            slot = self._slot_to_write()
            for at, block in enumerate(blocks[first : first + self._slot_blocks]):
                to = slot[at * self.block_nbytes :][: self.block_nbytes]
                checksums.append(copy_and_sum(np.frombuffer(block, dtype=np.uint8), to))
            mark = self.copies.to_device(slot[: len(ids) * self.block_nbytes], ids, self._marks_of(ids))
            self._written.append((mark, slot))
        return Landing(lambda: b"".join(checksums), mark.query)

    def stage_in_place(self, block_ids: Sequence[int]) -> Stage:
        """Start summing the blocks on the device."""
        note = self._note()
        return _Summed(self, note, len(block_ids), self.copies.sum_up(block_ids, note))

    def land_from(self, peer: PeerMemory, places: Sequence[int], block_ids: Sequence[int]) -> Landing:
        """Start copying the blocks from device to device, or take them over from the host's memory."""
        if isinstance(peer.where, memoryview):
            return self.land(block_ids, peer.views(places, self.block_nbytes))
        note = self._note()
        mark = self.copies.from_peer(peer.where, places, block_ids, note, self._marks_of(block_ids))
        return Landing(lambda: self._read(note, len(block_ids)), mark.query)

    def _marks_of(self, block_ids: Sequence[int]) -> set[Mark]:
        return {mark for mark in (self._marks.pop(block_id, None) for block_id in block_ids) if mark}

    def _note(self) -> Bytes:
        if not self._notes:
            self._notes = list(self.copies.pin(NOTES_PINNED * NOTE_NBYTES).reshape(NOTES_PINNED, NOTE_NBYTES))
        return self._notes.pop()

    def _read(self, note: Bytes, num_blocks: int) -> bytes:
        """Read the sums of a note, which is free from then on."""
        sums = note[MAX_BATCH_BLOCKS * ID_NBYTES :][: num_blocks * DIGEST_NBYTES].tobytes()
        self._notes.append(note)
        return sums

    def _slot_to_write(self) -> Bytes:
        while self._written and self._written[0][0].query():
            self._writing.append(self._written.popleft()[1])
        if self._writing:
            return self._writing.pop()
        mark, slot = self._written.popleft()
        mark.synchronize()
        return slot


class _Copied(Stage):
    def __init__(self, memory: DeviceMemory, slot: Bytes, view: memoryview, mark: Mark) -> None:
        super().__init__((view,), memory.block_nbytes)
        self._memory = memory
        self._slot = slot
        self._mark = mark

    def is_ready(self) -> bool:
        return self._mark.query()

    def release(self) -> None:
        self._memory._reading.append(self._slot)


class _Summed(Stage):
    """Blocks that stay where they are; only their sums are made."""

    def __init__(self, memory: DeviceMemory, note: Bytes, num_blocks: int, mark: Mark) -> None:
        super().__init__((), memory.block_nbytes)
        self._memory = memory
        self._note = note
        self._num_blocks = num_blocks
        self._mark = mark

    def is_ready(self) -> bool:
        return self._mark.query()

    def read(self) -> tuple[bytes, Sequence[memoryview]]:
        return self._memory._read(self._note, self._num_blocks), ()
