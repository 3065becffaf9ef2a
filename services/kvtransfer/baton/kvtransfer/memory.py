"""The memory that blocks come from and go to, as the transfer sees it.

Transfer code never learns whether blocks lie on a CPU or a GPU. Reading is *staging*: the memory is asked to make
blocks readable by the host, and says later that they are. Writing is *landing*: the bytes are taken over at once, and
are where the engine reads them when the landing says so. On a CPU (here) both are done when asked; on a GPU
(`device_memory.py`) they are copies that run while the engine computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128

from baton.errors import ConfigError
from baton.kvtransfer.wire import checksum

Bytes = NDArray[np.uint8]
GATHER_NBYTES = 512 << 10
"""Runs of less are put side by side before they are sent: a frame of its own costs each as much as copying this."""
NUM_GATHERED = 32
PIECE_NBYTES = 256 << 10
"""Copied and summed at a time, so that the second pass finds the bytes in the processor's own cache: 14 % less time
than one pass after the other over 2 MiB."""


class Stage(Protocol):
    """Blocks on their way to where the host can read them."""

    def is_ready(self) -> bool:
        """Whether `views` may be read."""

    @property
    def views(self) -> Sequence[memoryview]:
        """The bytes of the blocks, in order: a view for each run that lies side by side. Stable until released."""

    def sum(self) -> bytes:
        """Sum the blocks that `views` show, 16 bytes each."""

    def release(self) -> None:
        """Nobody reads the views any more."""


class Landing(Protocol):
    """Blocks on their way to where the engine reads them."""

    @property
    def checksums(self) -> bytes:
        """Of the bytes that were taken over, 16 a block. Whoever uses a block compares them first."""

    def is_ready(self) -> bool:
        """Whether nothing writes into the blocks any more, and the engine may read them."""


class BlockMemory(Protocol):
    """Blocks of one size, by number. `expect` is for the engine's thread, the others for the one that transfers."""

    @property
    def num_blocks(self) -> int: ...

    @property
    def block_nbytes(self) -> int: ...

    @property
    def shared(self) -> memoryview | None:
        """All blocks, if other processes of the host can map them and read them where they lie."""

    def expect(self, block_ids: Sequence[int]) -> None:
        """Note that blocks will land here: after all that the engine has started until now, which may write there."""

    def stage(self, block_ids: Sequence[int]) -> Stage | None:
        """Start making blocks readable; None: no room for it now, ask again. Blocks must not change until released."""

    def land(self, block_ids: Sequence[int], blocks: Sequence[memoryview]) -> Landing:
        """Take over the bytes of blocks. May wait for a device, never for a peer."""


class HostMemory:
    """Blocks in one contiguous piece of host memory, read and written in place.

    `buffer` is anything with the buffer interface, or a contiguous NumPy array: of a CPU tensor `kv`,
    `kv.view(torch.uint8).numpy()`. Its bytes are divided evenly among the blocks. `fd` is the descriptor of the file
    that begins with them, if other processes may map it.
    """

    def __init__(self, buffer: Any, num_blocks: int, *, fd: int | None = None) -> None:
        array = buffer if isinstance(buffer, np.ndarray) else np.frombuffer(buffer, dtype=np.uint8)
        if num_blocks < 1 or array.nbytes % num_blocks or not array.flags.c_contiguous:
            raise ConfigError(f"{array.nbytes} bytes of KV are not {num_blocks} equal, contiguous blocks")
        self.num_blocks = num_blocks
        self.block_nbytes = array.nbytes // num_blocks
        self._blocks: Bytes = array.reshape(-1).view(np.uint8).reshape(num_blocks, -1)
        self._bytes = self._blocks.reshape(-1).data
        self.shared = None if fd is None else self._bytes
        self.fd = fd
        self._spare: list[Bytes] = []
        self._num_gathered = 0

    def expect(self, block_ids: Sequence[int]) -> None:
        """Do nothing: on a CPU nothing of the engine runs behind its back."""

    def stage(self, block_ids: Sequence[int]) -> Stage | None:
        """View the blocks where they lie, or a copy side by side if they are small and scattered."""
        nbytes, found = self.block_nbytes, runs(block_ids)
        if len(found) > 1 and len(block_ids) * nbytes < len(found) * GATHER_NBYTES:
            return self._gather(block_ids)
        return InPlace([self._bytes[first * nbytes : stop * nbytes] for first, stop in found], nbytes)

    def _gather(self, block_ids: Sequence[int]) -> Stage | None:
        if self._num_gathered == NUM_GATHERED:
            return None
        self._num_gathered += 1
        return _Gathered(self, block_ids)

    def _copy(self, block_ids: Sequence[int]) -> tuple[Bytes, bytes]:
        """Copy blocks side by side into a room that is kept: new pages take the kernel as long as filling them.

        Each is summed right after it was copied.
        """
        nbytes = self.block_nbytes
        room = self._spare.pop() if self._spare else np.empty(0, dtype=np.uint8)
        if len(room) < len(block_ids) * nbytes:
            room = np.empty(len(block_ids) * nbytes, dtype=np.uint8)
        places = range(0, len(block_ids) * nbytes, nbytes)
        return room, b"".join(
            copy_and_sum(self._blocks[block_id], room[at : at + nbytes])
            for block_id, at in zip(block_ids, places, strict=True)
        )

    def _give_back(self, room: Bytes | None) -> None:
        self._num_gathered -= 1
        if room is not None:
            self._spare.append(room)

    def land(self, block_ids: Sequence[int], blocks: Sequence[memoryview]) -> Landing:
        """Copy the bytes to their blocks."""
        return _Landed(
            b"".join(
                copy_and_sum(np.frombuffer(block, dtype=np.uint8), self._blocks[block_id])
                for block_id, block in zip(block_ids, blocks, strict=True)
            )
        )


class InPlace:
    """Blocks that are read where they lie."""

    __slots__ = ("_block_nbytes", "views")

    def __init__(self, views: Sequence[memoryview], block_nbytes: int) -> None:
        self.views = views
        self._block_nbytes = block_nbytes

    def is_ready(self) -> bool:
        """They always are."""
        return True

    def sum(self) -> bytes:
        """Sum the blocks."""
        return sum_blocks(self.views, self._block_nbytes)

    def release(self) -> None:
        """Drop the views."""
        self.views = ()


class _Gathered:
    """Copied when first looked at, just before the copy is sent."""

    __slots__ = ("_block_ids", "_checksums", "_memory", "_room")

    def __init__(self, memory: HostMemory, block_ids: Sequence[int]) -> None:
        self._memory = memory
        self._block_ids = block_ids
        self._room: Bytes | None = None
        self._checksums = b""

    def is_ready(self) -> bool:
        return True

    @property
    def views(self) -> Sequence[memoryview]:
        return (self._copy()[: len(self._block_ids) * self._memory.block_nbytes].data,)

    def sum(self) -> bytes:
        self._copy()
        return self._checksums

    def _copy(self) -> Bytes:
        if self._room is None:
            self._room, self._checksums = self._memory._copy(self._block_ids)
        return self._room

    def release(self) -> None:
        room, self._room = self._room, None
        self._memory._give_back(room)


class _Landed:
    __slots__ = ("checksums",)

    def __init__(self, checksums: bytes) -> None:
        self.checksums = checksums

    def is_ready(self) -> bool:
        return True


def check_block_ids(memory: BlockMemory, block_ids: Sequence[int]) -> None:
    """Raise ValueError if one is no block of this memory."""
    if any(not 0 <= block_id < memory.num_blocks for block_id in block_ids):
        raise ValueError(f"block ids must be 0 to {memory.num_blocks - 1}")


def sum_blocks(views: Sequence[memoryview], block_nbytes: int) -> bytes:
    """Checksums of blocks, of which a view holds one or more."""
    return b"".join(
        checksum(view[at : at + block_nbytes]) for view in views for at in range(0, len(view), block_nbytes)
    )


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
