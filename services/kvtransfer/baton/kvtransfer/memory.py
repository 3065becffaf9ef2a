"""The memory that blocks come from and go to, as the transfer sees it.

Transfer code never learns whether blocks lie on a CPU or a GPU. Reading is *staging*: the memory is asked to make
blocks readable by the host, and says later that they are. On a CPU they are readable at once, where they lie; on a
GPU staging will be an asynchronous copy into a pinned ring, and releasing a stage gives its slot back. Writing is
*landing*: the bytes are taken over at once, and are where the engine reads them when the landing says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from baton.errors import ConfigError


class Stage(Protocol):
    """Blocks on their way to where the host can read them."""

    def is_ready(self) -> bool:
        """Tell whether `views` may be read."""

    @property
    def views(self) -> Sequence[memoryview]:
        """The bytes of the blocks, in order: a view for each run that lies side by side. Stable until released."""

    def release(self) -> None:
        """Say that nobody reads the views any more."""


class Landing(Protocol):
    """A block on its way to where the engine reads it."""

    def is_ready(self) -> bool:
        """Tell whether the engine may read the block."""


class BlockMemory(Protocol):
    """Blocks of one size, by number."""

    @property
    def num_blocks(self) -> int: ...

    @property
    def block_nbytes(self) -> int: ...

    def stage(self, block_ids: Sequence[int]) -> Stage | None:
        """Start making blocks readable; None: no room for it now, ask again. Blocks must not change until released."""

    def land(self, block_id: int, block: memoryview) -> Landing:
        """Take over the bytes of a block. May wait for a device, never for a peer."""


class _HostStage:
    __slots__ = ("views",)

    def __init__(self, views: Sequence[memoryview]) -> None:
        self.views = views

    def is_ready(self) -> bool:
        return True

    def release(self) -> None:
        self.views = ()


class _Landed:
    def is_ready(self) -> bool:
        return True


_LANDED = _Landed()


class HostMemory:
    """Blocks in one contiguous piece of host memory, read and written in place.

    `buffer` is anything with the buffer interface, or a contiguous NumPy array: for a CPU tensor `kv`, give
    `kv.view(torch.uint8).numpy()`. Its bytes are divided evenly among the blocks.
    """

    def __init__(self, buffer: Any, num_blocks: int) -> None:
        array = buffer if isinstance(buffer, np.ndarray) else np.frombuffer(buffer, dtype=np.uint8)
        if num_blocks < 1 or array.nbytes % num_blocks or not array.flags.c_contiguous:
            raise ConfigError(f"{array.nbytes} bytes of KV are not {num_blocks} equal, contiguous blocks")
        self.num_blocks = num_blocks
        self.block_nbytes = array.nbytes // num_blocks
        self._blocks: NDArray[np.uint8] = array.reshape(-1).view(np.uint8).reshape(num_blocks, -1)
        self._bytes = self._blocks.reshape(-1).data

    def stage(self, block_ids: Sequence[int]) -> Stage:
        """Give views of the blocks where they lie."""
        nbytes = self.block_nbytes
        return _HostStage(
            [self._bytes[first * nbytes : (last + 1) * nbytes] for first, last in _runs(block_ids)]
        )

    def land(self, block_id: int, block: memoryview) -> Landing:
        """Copy the bytes to their block."""
        # NumPy copies without the interpreter's lock; assigning to a memoryview would hold it.
        self._blocks[block_id] = np.frombuffer(block, dtype=np.uint8)
        return _LANDED


def _runs(block_ids: Sequence[int]) -> list[tuple[int, int]]:
    """Give first and last of each run of ascending neighbours."""
    runs: list[tuple[int, int]] = []
    for block_id in block_ids:
        if runs and runs[-1][1] + 1 == block_id:
            runs[-1] = (runs[-1][0], block_id)
        else:
            runs.append((block_id, block_id))
    return runs
