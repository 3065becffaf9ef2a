"""Copies between the KV cache of a GPU and pinned host memory, or another process's GPU memory, on streams of their own."""

from __future__ import annotations

import mmap
import os
import threading
import time
import weakref
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
import torch
from torch import Tensor

from baton import cuda_driver
from baton.errors import ConfigError
from baton.kernels.block_sum import PARTS, WORD_NBYTES, block_sums
from baton.kvtransfer.device_memory import Mark, Sums
from baton.kvtransfer.memory import Bytes
from baton.kvtransfer.settings import MIB
from baton.kvtransfer.wire import DIGEST_NBYTES, MAX_BATCH_BLOCKS
from baton.logs import get_logger

log = get_logger("kvtransfer")
ID_NBYTES = 4
NOTE_NBYTES = MAX_BATCH_BLOCKS * (ID_NBYTES + PARTS * DIGEST_NBYTES)
NOTES_PINNED = 16
"""At a time: pinning takes long."""
MEASURED_NBYTES = 16 * MIB
MEASUREMENTS = 4
"""The best counts: the first warms up, and the thread may be held up in another."""


class CudaCopies:
    """The blocks of `kv` [num_blocks, ...], contiguous on a CUDA device; one thread starts copies, all but those `to_device`.

    Copy engines move each run of neighbours, so that the engine's kernels keep all of the processors. A kernel that copied
    and summed in one pass would save reading the copy once, 0.1 ms of the whole GPU for 268 MB, but hold a quarter of the
    processors for as long as NVLink takes, 0.7 ms: it costs the steps beside it more.
    """

    def __init__(self, kv: Tensor) -> None:
        self.num_blocks = len(kv)
        self._blocks = kv.view(self.num_blocks, -1).view(torch.uint8)
        self.block_nbytes = self._blocks.shape[1]
        self._device = kv.device
        self.nbytes = self.num_blocks * self.block_nbytes
        # Two: a copy that waits for a step of the engine keeps none of the other direction back. Sums take the next free
        # processors: a prompt's step has thousands of programs that wait for one.
        self._reads = torch.cuda.Stream(kv.device, priority=-1)  # type: ignore[no-untyped-call]
        self._writes = torch.cuda.Stream(kv.device, priority=-1)  # type: ignore[no-untyped-call]
        self._thread = threading.local()
        self._notes: list[_Note] = []
        self._copier = cuda_driver.Copier()
        self._can_sum = self._try_sum()
        self.is_shared = self._can_sum and self._try_export()

    def pin(self, nbytes: int) -> Bytes:
        """Make pinned memory; its array keeps it."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()

    def pin_shared(self, nbytes: int) -> tuple[Bytes, int | None]:
        """Make pinned memory of a file without a name; where that cannot be, other pinned memory."""
        if not self._can_sum:
            return self.pin(nbytes), None
        fd = os.memfd_create("baton-kv-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, nbytes)
            room = np.frombuffer(mmap.mmap(fd, nbytes), dtype=np.uint8)
            self.register(room)
            # before it is unmapped: what is mapped at the same address next could not be registered
            weakref.finalize(room, _unregister, self._device, room.ctypes.data).atexit = False
        except (OSError, ConfigError) as error:
            os.close(fd)
            log.info("ring_not_shared", reason=str(error))
            return self.pin(nbytes), None
        return room, fd

    def register(self, room: Bytes) -> None:
        """Let copies reach host memory that was mapped, without the host's help."""
        with self._reading():
            cuda_driver.register(room.ctypes.data, room.nbytes)

    def unregister(self, room: Bytes) -> None:
        """End that."""
        with self._reading():
            cuda_driver.unregister(room.ctypes.data)

    def mark(self) -> Mark:
        """Record an event on the stream on which the calling thread, the engine's, launches its steps."""
        return _record(torch.cuda.current_stream(self._device))

    def to_host(self, block_ids: Sequence[int], to: Bytes) -> Mark:
        """Start one copy for each run of neighbours."""
        with self._reading():
            self._start_reading(block_ids, to, range(len(block_ids)))
            return _record(self._reads)

    def to_device(self, source: Bytes, block_ids: Sequence[int], after: Collection[Mark]) -> Mark:
        """Start one copy for each run of neighbours."""
        with self._writing(after):
            self._start_writing(source.ctypes.data, range(len(block_ids)), block_ids)
            return _record(self._writes)

    def sum_up(self, block_ids: Sequence[int]) -> Sums:
        """Start one kernel, which reads each block once."""
        with self._reading():
            return self._sum(block_ids, self._reads)

    def to_ring(self, block_ids: Sequence[int], ring: Bytes, places: Sequence[int]) -> Sums:
        """Start one copy for each run of blocks that are neighbours on both sides, and one kernel that sums."""
        with self._reading():
            self._start_reading(block_ids, ring, places)
            return self._sum(block_ids, self._reads)

    def from_peer(self, address: int, places: Sequence[int], block_ids: Sequence[int], after: Collection[Mark]) -> Sums:
        """Start one copy for each run of blocks that are neighbours on both sides, and one kernel that sums."""
        with self._writing(after):
            self._start_writing(address, places, block_ids)
            return self._sum(block_ids, self._writes)

    def _start_reading(self, block_ids: Sequence[int], to: Bytes, places: Sequence[int]) -> None:
        theirs, ours, sizes = self._runs(to.ctypes.data, places, block_ids)
        self._copier.start(theirs, ours, sizes, self._reads.cuda_stream)

    def _start_writing(self, address: int, places: Sequence[int], block_ids: Sequence[int]) -> None:
        theirs, ours, sizes = self._runs(address, places, block_ids)
        self._copier.start(ours, theirs, sizes, self._writes.cuda_stream)

    def _runs(
        self, address: int, places: Sequence[int], block_ids: Sequence[int]
    ) -> tuple[cuda_driver.Numbers, cuda_driver.Numbers, cuda_driver.Numbers]:
        """Return addresses in other memory, addresses of our blocks, and sizes."""
        runs = cuda_driver.joint_runs(places, block_ids)
        return cuda_driver.run_addresses(runs, self.block_nbytes, address, self._blocks.data_ptr())

    def export_memory(self) -> tuple[bytes, int]:
        """Return the handle of the allocation, and where in it block 0 begins."""
        with self._reading():
            return cuda_driver.export_memory(self._blocks.data_ptr())

    def open_memory(self, handle: bytes) -> int:
        """Map another process's allocation for this device."""
        with self._writing():
            return cuda_driver.open_memory(handle)

    def close_memory(self, address: int) -> None:
        """Unmap it."""
        with self._writing():
            cuda_driver.close_memory(address)

    def measure(self, address: int, nbytes: int) -> float:
        """Copy some of a peer's memory aside; return the best rate in bytes a second. Waits for it.

        Raises:
            ConfigError: it cannot be copied.
        """
        try:
            return self._measure(address, min(nbytes, MEASURED_NBYTES))
        except RuntimeError as error:  # the driver's or torch's, which may lack the memory
            raise ConfigError(f"a peer's memory cannot be copied: {error}") from None

    def _measure(self, address: int, nbytes: int) -> float:
        times = max(1, MEASURED_NBYTES // nbytes)
        seconds = []
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            stream.query()
            aside = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
            to, sources, sizes = (np.full(times, at, dtype=np.uint64) for at in (aside.data_ptr(), address, nbytes))
            for _ in range(MEASUREMENTS):
                started_at = time.perf_counter()
                self._copier.start(to, sources, sizes, stream.cuda_stream)
                stream.synchronize()
                seconds.append(time.perf_counter() - started_at)
        return times * nbytes / min(seconds)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with torch.cuda.stream(self._reads):
            self._make_current(self._reads)
            yield

    @contextmanager
    def _writing(self, after: Collection[Mark] = ()) -> Iterator[None]:
        with torch.cuda.stream(self._writes):
            self._make_current(self._writes)
            for mark in after:
                assert isinstance(mark, torch.cuda.Event)
                self._writes.wait_event(mark)
            yield

    def _make_current(self, stream: torch.cuda.Stream) -> None:
        """Give this thread a context, which it has only after a first call of the runtime."""
        if not hasattr(self._thread, "is_current"):
            stream.query()
            self._thread.is_current = True

    def _sum(self, block_ids: Sequence[int], stream: torch.cuda.Stream) -> Sums:
        if not self._notes:
            rooms = self.pin(NOTES_PINNED * NOTE_NBYTES).reshape(NOTES_PINNED, NOTE_NBYTES)
            self._notes = [_Note(room) for room in rooms]
        note, count = self._notes.pop(), len(block_ids)
        note.ids[:count] = block_ids
        block_sums(self._blocks, note.ids_tensor[:count], note.sums_tensor[:count])
        return _CudaSums(self._notes, note, count, _record(stream))

    def _try_sum(self) -> bool:
        """Whether blocks can be summed; compiles the kernel, for which no request shall wait."""
        if self.block_nbytes % WORD_NBYTES:
            return False
        sums = self.sum_up([0])
        self._reads.synchronize()
        sums.read()
        return True

    def _try_export(self) -> bool:
        try:
            self.export_memory()
        except ConfigError as error:
            log.info("memory_not_shared", reason=str(error))
            return False
        return True


class _Note:
    """Pinned memory for the blocks of a message: their ids, which the device reads, and their sums, which it writes."""

    def __init__(self, room: Bytes) -> None:
        at = MAX_BATCH_BLOCKS * ID_NBYTES
        self.ids = room[:at].view(np.int32)
        self.sums = room[at:].view(np.uint64).reshape(MAX_BATCH_BLOCKS, PARTS, 2)
        self.ids_tensor = torch.from_numpy(self.ids)
        self.sums_tensor = torch.from_numpy(self.sums.view(np.int64))


class _CudaSums:
    """Sums of blocks, in a note that is free once they are read."""

    def __init__(self, free: list[_Note], note: _Note, count: int, mark: Mark) -> None:
        self._free = free
        self._note = note
        self._count = count
        self.query = mark.query

    def read(self) -> bytes:
        """Add up the parts."""
        sums: bytes = self._note.sums[: self._count].sum(axis=1, dtype=np.uint64).tobytes()
        self._free.append(self._note)
        return sums


def _unregister(device: torch.device, address: int) -> None:
    with suppress(ConfigError), torch.cuda.device(device):
        cuda_driver.unregister(address)


def _record(stream: torch.cuda.Stream) -> Mark:
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(stream)
    return event
