"""The memory that blocks come from and go to, as the transfer sees it.

Transfer code never learns whether blocks lie on a CPU or a GPU. Reading is *staging*: the memory is asked to make
blocks readable by the host, and says later that they are. Writing is *landing*: the bytes are taken over at once, and
are where the engine reads them when the landing says so. On a CPU (here) both are done when asked; on a GPU
(`device_memory.py`) they are copies that run while the engine computes.

Between two workers of one host the importer may read the exporter's blocks itself, where they lie (`PeerMemory`): the
exporter only sums them (`stage_in_place`), and the importer sums its own copy. Where a device's blocks cannot be read, its
copies of them in the host's memory may be (`stage_in_ring`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128

from baton.errors import ConfigError
from baton.kvtransfer.crew import Crew, make_crew
from baton.kvtransfer.wire import Reads, checksum

Bytes = NDArray[np.uint8]
GATHER_NBYTES = 512 << 10
"""Runs of less are put side by side before they are sent: a frame of its own costs each as much as copying this."""
NUM_GATHERED = 32
PLACED_NBYTES = 8 << 20
"""Of one message that only says where its blocks lie: some milliseconds of the importer's work."""
PIECE_NBYTES = 256 << 10
"""Copied and summed at a time, so that the second pass finds the bytes in the processor's own cache: 14 % less time
than one pass after the other over 2 MiB."""


class Stage:
    """Blocks on their way to where the host can read them; here those that are read where they lie."""

    def __init__(self, views: Sequence[memoryview], block_nbytes: int, crew: Crew | None = None) -> None:
        self._views = views
        self._block_nbytes = block_nbytes
        self._crew = crew
        self._sums: Future[bytes] | None = None
        self.places: Sequence[int] = ()
        """Where they are in the ring, if they are in one."""

    def is_ready(self) -> bool:
        """Whether they may be read."""
        if self._crew is None:
            return True
        if self._sums is None:
            self._begin()
            self._sums = self._crew.start(self._sum)
        return self._sums.done()

    def read(self) -> tuple[bytes, Sequence[memoryview]]:
        """Return the blocks' sums, 16 bytes each, and their bytes, a view for each run that lies side by side.

        Called once at most. The views are stable until released.
        """
        if self._sums is not None:
            return self._sums.result(), self._views
        self._begin()  # only now, so that the sockets find the bytes in the processor's cache
        return self._sum(), self._views

    def release(self) -> None:
        """Nobody reads the views any more."""

    def _begin(self) -> None:
        """Make ready for `_sum`, which may run in another thread."""

    def _sum(self) -> bytes:
        nbytes = self._block_nbytes
        blocks = (view[at : at + nbytes] for view in self._views for at in range(0, len(view), nbytes))
        return b"".join(map(checksum, blocks))


@dataclass(frozen=True, slots=True)
class Landing:
    """Blocks on their way to where the engine reads them."""

    checksums: Callable[[], bytes]
    """Returns, once it is ready, those of the bytes that were taken over, 16 a block. Whoever uses a block compares them first."""
    is_ready: Callable[[], bool] = lambda: True
    """Whether nothing writes into the blocks any more, and the engine may read them."""


@dataclass(frozen=True, slots=True)
class PeerMemory:
    """The blocks of another process, block 0 first, as this one reads them."""

    where: memoryview | int
    """Host memory, or an address that this process's GPU reads."""
    nbytes: int
    close: Callable[[], None] = lambda: None
    """Unmaps it, after the last copy from it. Host memory needs none: the last view of it unmaps it."""
    is_gone: Callable[[], bool] = lambda: False
    """Whether the process whose memory it is has ended: mapped on, a GPU's memory would not come free."""
    reads: Reads = Reads.BLOCKS
    rate: float | None = None
    """Bytes a second at which it was read when it was mapped, if that was measured."""

    def views(self, places: Sequence[int], block_nbytes: int) -> list[memoryview]:
        """View the blocks at these places of host memory."""
        assert isinstance(self.where, memoryview)
        return [self.where[at * block_nbytes : (at + 1) * block_nbytes] for at in places]


class BlockMemory(Protocol):
    """Blocks of one size, by number. `expect` is for the engine's thread, the others for the one that transfers."""

    @property
    def num_blocks(self) -> int: ...

    @property
    def block_nbytes(self) -> int: ...

    @property
    def place_nbytes(self) -> int:
        """Most bytes of a message that only says where blocks lie; 0: no other process can read them there."""

    @property
    def ring_nbytes(self) -> int:
        """The same of a message that says where copies of blocks lie in the ring; 0: there is none for others to read."""

    def expect(self, block_ids: Sequence[int]) -> None:
        """Note that blocks will land here: after all that the engine has started until now, which may write there."""

    def stage(self, block_ids: Sequence[int]) -> Stage | None:
        """Start making blocks readable; None: no room for it now, ask again. Blocks must not change until released."""

    def stage_in_place(self, block_ids: Sequence[int]) -> Stage:
        """Start making the sums of blocks that a peer reads where they lie. Blocks must not change until released."""

    def stage_in_ring(self, block_ids: Sequence[int]) -> Stage | None:
        """Start copying blocks to where a peer reads them, and making their sums; None: no room for it now."""

    def land(self, block_ids: Sequence[int], blocks: Sequence[memoryview]) -> Landing:
        """Take over the bytes of blocks. May wait for a device, never for a peer."""

    def land_from(self, peer: PeerMemory, places: Sequence[int], block_ids: Sequence[int]) -> Landing:
        """Take over the blocks at these places of a peer's memory or ring, all of them within it."""


class HostMemory:
    """Blocks in one contiguous piece of host memory, read and written in place.

    `buffer` is anything with the buffer interface, or a contiguous NumPy array: of a CPU tensor `kv`,
    `kv.view(torch.uint8).numpy()`. Its bytes are divided evenly among the blocks. `fd` is the descriptor of the file
    that begins with them, if other processes may map it; `num_threads` copy and sum side by side.
    """

    def __init__(self, buffer: Any, num_blocks: int, *, fd: int | None = None, num_threads: int = 1) -> None:
        array = buffer if isinstance(buffer, np.ndarray) else np.frombuffer(buffer, dtype=np.uint8)
        if num_blocks < 1 or array.nbytes % num_blocks or not array.flags.c_contiguous:
            raise ConfigError(f"{array.nbytes} bytes of KV are not {num_blocks} equal, contiguous blocks")
        self.num_blocks = num_blocks
        self.block_nbytes = array.nbytes // num_blocks
        self._blocks: Bytes = array.reshape(-1).view(np.uint8).reshape(num_blocks, -1)
        self._bytes = self._blocks.reshape(-1).data
        self.place_nbytes = 0 if fd is None else PLACED_NBYTES
        self.ring_nbytes = 0
        self.fd = fd
        self._crew = make_crew(num_threads)
        self._spare: list[Bytes] = []
        self._num_gathered = 0

    def expect(self, block_ids: Sequence[int]) -> None:
        """Do nothing: on a CPU nothing of the engine runs behind its back."""

    def stage(self, block_ids: Sequence[int]) -> Stage | None:
        """View the blocks where they lie, or a copy side by side if they are small and scattered."""
        nbytes, found = self.block_nbytes, runs(block_ids)
        if len(found) == 1 or len(block_ids) * nbytes >= len(found) * GATHER_NBYTES:
            return Stage([self._bytes[first * nbytes : stop * nbytes] for first, stop in found], nbytes, self._crew)
        if self._num_gathered == NUM_GATHERED:
            return None
        self._num_gathered += 1
        return _Gathered(self, block_ids)

    def stage_in_place(self, block_ids: Sequence[int]) -> Stage:
        """Sum the blocks when read."""
        nbytes = self.block_nbytes
        return Stage([self._bytes[at * nbytes : (at + 1) * nbytes] for at in block_ids], nbytes, self._crew)

    def stage_in_ring(self, block_ids: Sequence[int]) -> Stage | None:
        """Have no ring: blocks are read where they lie."""
        return None

    def land(self, block_ids: Sequence[int], blocks: Sequence[memoryview]) -> Landing:
        """Copy the bytes to their blocks."""

        def copy() -> bytes:
            pairs = zip(block_ids, blocks, strict=True)
            return b"".join(copy_and_sum(np.frombuffer(block, np.uint8), self._blocks[at]) for at, block in pairs)

        if self._crew is not None:
            copying = self._crew.start(copy)
            return Landing(copying.result, copying.done)
        sums = copy()
        return Landing(lambda: sums)

    def land_from(self, peer: PeerMemory, places: Sequence[int], block_ids: Sequence[int]) -> Landing:
        """Copy the bytes from where the peer has them."""
        return self.land(block_ids, peer.views(places, self.block_nbytes))

    def _room(self, num_blocks: int) -> Bytes:
        """Take a room for blocks that is kept: new pages take the kernel as long as filling them."""
        nbytes = num_blocks * self.block_nbytes
        room = self._spare.pop() if self._spare else np.empty(0, dtype=np.uint8)
        return room if len(room) >= nbytes else np.empty(nbytes, dtype=np.uint8)

    def _gather(self, block_ids: Sequence[int], room: Bytes) -> bytes:
        """Copy blocks side by side. Each is summed right after it was copied."""
        to = room[: len(block_ids) * self.block_nbytes].reshape(len(block_ids), -1)
        return b"".join(copy_and_sum(self._blocks[block_id], to[at]) for at, block_id in enumerate(block_ids))

    def _give_back(self, room: Bytes | None) -> None:
        self._num_gathered -= 1
        if room is not None:
            self._spare.append(room)


class _Gathered(Stage):
    """Copied when summed, just before the copy is sent."""

    def __init__(self, memory: HostMemory, block_ids: Sequence[int]) -> None:
        super().__init__((), memory.block_nbytes, memory._crew)
        self._memory = memory
        self._block_ids = block_ids
        self._room: Bytes | None = None

    def release(self) -> None:
        self._memory._give_back(self._room)

    def _begin(self) -> None:
        self._room = self._memory._room(len(self._block_ids))
        self._views = (self._room[: len(self._block_ids) * self._block_nbytes].data,)

    def _sum(self) -> bytes:
        assert self._room is not None
        return self._memory._gather(self._block_ids, self._room)


def check_block_ids(memory: BlockMemory, block_ids: Sequence[int]) -> None:
    """Raise ValueError if one is no block of this memory."""
    if any(not 0 <= block_id < memory.num_blocks for block_id in block_ids):
        raise ValueError(f"block ids must be 0 to {memory.num_blocks - 1}")


def copy_and_sum(block: Bytes, to: Bytes) -> bytes:
    """Copy a block's bytes; return the checksum of what was copied."""
    # NumPy copies and xxhash sums without the interpreter's lock; assigning to a memoryview would hold it.
    if len(block) <= PIECE_NBYTES:
        to[:] = block
        return checksum(to.data)
    total = xxh3_128()
    for at in range(0, len(block), PIECE_NBYTES):
        piece = to[at : at + PIECE_NBYTES]
        piece[:] = block[at : at + PIECE_NBYTES]
        total.update(piece.data)
    return total.digest()


def runs(block_ids: Sequence[int]) -> list[tuple[int, int]]:
    """Find the runs of ascending neighbours: of each its first block, and the one after its last."""
    found: list[tuple[int, int]] = []
    for block_id in block_ids:
        if found and found[-1][1] == block_id:
            found[-1] = (found[-1][0], block_id + 1)
        else:
            found.append((block_id, block_id + 1))
    return found
