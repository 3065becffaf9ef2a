"""Blocks that lie on a device: rings of pinned host memory that copies run into and out of, beside the engine.

Here is what may be copied when; the copies themselves are `Copies`, which on a GPU are `CudaCopies`. Every slot of a
ring takes one message's blocks. A slot to read from is free again when the sockets let go of it, one to write from
when its copy has ended: the rings are apart, so that a peer which does not read keeps nothing from landing.

Between GPUs of one host no bytes come to the host: the importer's device copies the blocks out of the exporter's, and each
device sums what it has. Where one cannot read the other, both copy, into and out of the exporter's ring, which then is shared
memory: no processor touches the bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np

from baton.kvtransfer.crew import make_crew
from baton.kvtransfer.memory import Bytes, Landing, PeerMemory, Stage, copy_and_sum
from baton.kvtransfer.settings import MIB

RING_NBYTES = 64 * MIB
MIN_SLOTS = 4
PLACED_NBYTES = 128 * MIB
"""Of one message that only says where blocks lie. A GPU copies so much of another's in 0.35 ms; each message takes both sides'
interpreters 0.2 to 0.45 ms, so that with 64 MiB the copy engine waited for them (137 GB/s on two H200 with four open)."""
RING_MESSAGE_NBYTES = 8 * MIB
"""Of one that says where copies lie in the ring: 0.15 ms over PCIe each way, as long as its messages take both sides."""


class Mark(Protocol):
    """A point in a device's work; a CUDA event is one."""

    def query(self) -> bool:
        """Whether the device has come to it."""

    def synchronize(self) -> None:
        """Wait until it has."""


class Sums(Protocol):
    """Checksums of blocks that a device makes."""

    def query(self) -> bool:
        """Whether they are made, and all that was started before on their way is done."""

    def read(self) -> bytes:
        """Return them, 16 bytes a block. Called once, when they are made."""


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

    def pin_shared(self, nbytes: int) -> tuple[Bytes, int | None]:
        """Make the same of a file without a name, for other processes too, and return its descriptor; None: they cannot."""

    def mark(self) -> Mark:
        """Mark the end of what the engine has started."""

    def to_host(self, block_ids: Sequence[int], to: Bytes) -> Mark:
        """Start copying blocks side by side into pinned memory; what was computed is read as it is now."""

    def to_device(self, source: Bytes, block_ids: Sequence[int], after: Collection[Mark]) -> Mark:
        """Start copying from pinned memory into blocks, once the device has come to all of `after`. For any thread."""

    def sum_up(self, block_ids: Sequence[int]) -> Sums:
        """Start summing blocks; what was computed is read as it is now."""

    def to_ring(self, block_ids: Sequence[int], ring: Bytes, places: Sequence[int]) -> Sums:
        """Start copying blocks to places of pinned memory, as many bytes each; then sum them. As `to_host` reads."""

    def from_peer(self, address: int, places: Sequence[int], block_ids: Sequence[int], after: Collection[Mark]) -> Sums:
        """Start copying blocks of another process's memory or ring, once the device has come to all of `after`; then sum the copies."""


class DeviceMemory:
    """A `BlockMemory` over a device's copies."""

    def __init__(
        self, copies: Copies, *, frame_nbytes: int, ring_nbytes: int = RING_NBYTES, num_threads: int = 1
    ) -> None:
        """Pin two rings of at least `ring_nbytes`; a slot takes the blocks of a message of `frame_nbytes`.

        `num_threads` copy on the host, and sum, side by side.
        """
        self.num_blocks = copies.num_blocks
        self.block_nbytes = copies.block_nbytes
        self.place_nbytes = max(self.block_nbytes, PLACED_NBYTES) if copies.is_shared else 0
        self.copies = copies
        self._slot_blocks = max(1, frame_nbytes // self.block_nbytes)
        slot_nbytes = self._slot_blocks * self.block_nbytes
        num_slots = max(MIN_SLOTS, -(-ring_nbytes // slot_nbytes))
        self._ring, self.ring_fd = copies.pin_shared(num_slots * slot_nbytes)
        """What is read; for other processes to map if it has a descriptor."""
        most = min(RING_MESSAGE_NBYTES, len(self._ring) // MIN_SLOTS)
        self.ring_nbytes = 0 if self.ring_fd is None else max(slot_nbytes, most)
        self._reading = list(range(num_slots))
        """Slots of the ring that are free."""
        self._writing: list[Bytes] = list(copies.pin(num_slots * slot_nbytes).reshape(num_slots, slot_nbytes))
        self._crew = make_crew(num_threads)
        self._arriving: deque[_Arriving] = deque()
        """What has a slot to be copied from, the oldest first."""
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
        begin = slot * self._slot_blocks * self.block_nbytes
        taken = self._ring[begin : begin + len(block_ids) * self.block_nbytes]
        return _Copied(self, slot, taken.data, self.copies.to_host(block_ids, taken))

    def stage_in_ring(self, block_ids: Sequence[int]) -> Stage | None:
        """Start copies into as many free slots as the blocks need, and their sums."""
        size = self._slot_blocks
        num_slots = -(-len(block_ids) // size)
        if len(self._reading) < num_slots:
            return None
        slots = [self._reading.pop() for _ in range(num_slots)]
        places = [slot * size + at for slot in slots for at in range(size)][: len(block_ids)]
        return _InRing(self, slots, places, self.copies.to_ring(block_ids, self._ring, places))

    def land(self, block_ids: Sequence[int], blocks: Sequence[memoryview]) -> Landing:
        """Copy the bytes into slots, and start the copies from there."""
        size = self._slot_blocks
        parts = [
            self._arrive(block_ids[first : first + size], blocks[first : first + size])
            for first in range(0, len(block_ids), size)
        ]
        return Landing(lambda: b"".join(part.sums for part in parts), lambda: all(part.is_ready() for part in parts))

    def stage_in_place(self, block_ids: Sequence[int]) -> Stage:
        """Start summing the blocks on the device."""
        return _Summed(self.copies.sum_up(block_ids), self.block_nbytes)

    def land_from(self, peer: PeerMemory, places: Sequence[int], block_ids: Sequence[int]) -> Landing:
        """Start copying the blocks from device to device, or take them over from the host's memory."""
        if isinstance(peer.where, memoryview):
            return self.land(block_ids, peer.views(places, self.block_nbytes))
        sums = self.copies.from_peer(peer.where, places, block_ids, self._marks_of(block_ids))
        return Landing(sums.read, sums.query)

    def _marks_of(self, block_ids: Sequence[int]) -> set[Mark]:
        return {mark for mark in (self._marks.pop(block_id, None) for block_id in block_ids) if mark}

    def _arrive(self, block_ids: Sequence[int], blocks: Sequence[memoryview]) -> _Arriving:
        arriving = _Arriving(self.copies, self._slot_to_write(), block_ids, blocks, self._marks_of(block_ids))
        self._arriving.append(arriving)
        if self._crew is None:
            arriving.copy()
        else:
            arriving.job = self._crew.start(arriving.copy)
        return arriving

    def _slot_to_write(self) -> Bytes:
        while self._arriving and self._arriving[0].is_ready():
            self._writing.append(self._arriving.popleft().slot)
        if self._writing:
            return self._writing.pop()
        oldest = self._arriving.popleft()
        oldest.wait()
        return oldest.slot


class _Arriving:
    """Blocks that are copied into a slot, summed, and copied on to the device."""

    def __init__(
        self,
        copies: Copies,
        slot: Bytes,
        block_ids: Sequence[int],
        blocks: Sequence[memoryview],
        after: Collection[Mark],
    ) -> None:
        self.slot = slot
        self.sums = b""
        self.job: Future[None] | None = None
        self._copies = copies
        self._block_ids = block_ids
        self._blocks = blocks
        self._after = after
        self._mark: Mark | None = None

    def copy(self) -> None:
        """Copy the bytes into the slot, and start the copy from there; maybe in a thread of the crew."""
        nbytes, sums = self._copies.block_nbytes, []
        for at, block in enumerate(self._blocks):
            sums.append(copy_and_sum(np.frombuffer(block, dtype=np.uint8), self.slot[at * nbytes :][:nbytes]))
        self._blocks = ()
        self.sums = b"".join(sums)
        self._mark = self._copies.to_device(self.slot[: len(sums) * nbytes], self._block_ids, self._after)

    def is_ready(self) -> bool:
        """Whether the device has the blocks."""
        if self._mark is None and self.job is not None and self.job.done():
            self.job.result()  # raises what has kept the crew from it
        return self._mark is not None and self._mark.query()

    def wait(self) -> None:
        """Wait until the device has the blocks."""
        if self.job is not None:
            self.job.result()
        assert self._mark is not None
        self._mark.synchronize()


class _Copied(Stage):
    def __init__(self, memory: DeviceMemory, slot: int, view: memoryview, mark: Mark) -> None:
        super().__init__((view,), memory.block_nbytes, memory._crew)
        self._memory = memory
        self._slot = slot
        self._mark = mark

    def is_ready(self) -> bool:
        return self._mark.query() and super().is_ready()

    def release(self) -> None:
        self._memory._reading.append(self._slot)


class _Summed(Stage):
    """Blocks that stay where they are; only their sums are made."""

    def __init__(self, sums: Sums, block_nbytes: int) -> None:
        super().__init__((), block_nbytes)
        self._made = sums

    def is_ready(self) -> bool:
        return self._made.query()

    def read(self) -> tuple[bytes, Sequence[memoryview]]:
        return self._made.read(), ()


class _InRing(_Summed):
    """Blocks of which copies lie in the ring, for a peer to read."""

    def __init__(self, memory: DeviceMemory, slots: Sequence[int], places: Sequence[int], sums: Sums) -> None:
        super().__init__(sums, memory.block_nbytes)
        self.places = places
        self._memory = memory
        self._slots = slots

    def release(self) -> None:
        self._memory._reading += self._slots
