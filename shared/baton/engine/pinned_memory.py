"""Host memory that a GPU copies from and to by itself: pinned in pieces, by a thread, while the engine serves already.

Pinning 32 GiB takes seconds. A piece takes about a millisecond once its pages are there, so that the thread which launches
steps never waits long for the driver.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from baton.cuda_driver import joint_runs
from baton.logs import get_logger

PIECE_NBYTES = 16 << 20
_POPULATE_WRITE = 23
"""madvise: make the pages of a range, with what they hold; Linux 5.14."""

log = get_logger("engine")


def anonymous_memory(nbytes: int) -> memoryview:
    """Return memory that costs nothing until it is used, in large pages where the system has them."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


class Pinned:
    """Slots of one size in `memory`, which begins at a page; `num_slots` of them are pinned so far."""

    def __init__(self, memory: memoryview, slot_nbytes: int, device: torch.device) -> None:
        self.num_slots = 0
        most = len(memory) // slot_nbytes
        self.slots = torch.frombuffer(memory, dtype=torch.uint8, count=most * slot_nbytes).view(most, slot_nbytes)
        self._piece = piece_slots(slot_nbytes)
        self._device = device
        self._pinned: list[int] = []
        # Memory that is unmapped while it is pinned spoils its addresses for the driver. With the process all of it goes.
        self._unpin = weakref.finalize(self, _unpin, self._pinned, self.slots)
        self._unpin.atexit = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="baton-pin", daemon=True)
        self._thread.start()

    def runs(self, slots: Sequence[int], block_ids: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """Find the runs that ascend on both sides within a piece: one copy cannot cross to another piece."""
        return joint_runs(slots, block_ids, self._piece)

    def close(self) -> None:
        """Let go of what is pinned; no copy runs any more."""
        self._stopping = True
        self._thread.join()
        self.num_slots = 0
        self._unpin()

    def _run(self) -> None:
        most, slot_nbytes = self.slots.shape
        with torch.cuda.device(self._device):
            for first in range(0, most, self._piece):
                stop = min(first + self._piece, most)
                begin = self.slots.data_ptr() + first * slot_nbytes
                if self._stopping or not self._pin(begin, (stop - first) * slot_nbytes):
                    return
                self.num_slots = stop

    def _pin(self, address: int, nbytes: int) -> bool:
        """Pin a piece; False, and a line, where the system does not let us."""
        _make_pages(address, nbytes)
        cudart = _cudart()
        error = cudart.cudaHostRegister(address, nbytes, 0)
        if error != cudart.cudaError.success:
            log.warning("memory_not_pinned", num_slots=self.num_slots, wanted=len(self.slots), error=str(error))
            return False
        self._pinned.append(address)
        return True


def piece_slots(slot_nbytes: int) -> int:
    """Return how many slots are pinned at once: so many that each piece begins at a page."""
    least = mmap.PAGESIZE // math.gcd(slot_nbytes, mmap.PAGESIZE)
    return least * max(1, PIECE_NBYTES // (least * slot_nbytes))


def _unpin(pinned: list[int], _slots: torch.Tensor) -> None:
    while pinned:
        _cudart().cudaHostUnregister(pinned.pop())


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _make_pages(address: int, nbytes: int) -> None:
    """Have the pages made without holding the interpreter or the driver; where the kernel is older, pinning makes them."""
    libc = ctypes.CDLL(None)
    libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), _POPULATE_WRITE)
