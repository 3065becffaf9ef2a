"""Copies between the KV cache of a GPU and pinned host memory, or another process's GPU memory, on streams of their own."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from baton.errors import ConfigError
from baton.kernels.block_sum import block_sums
from baton.kvtransfer import cuda_driver
from baton.kvtransfer.device_memory import ID_NBYTES, Mark
from baton.kvtransfer.memory import Bytes, runs
from baton.kvtransfer.wire import DIGEST_NBYTES, MAX_BATCH_BLOCKS
from baton.logs import get_logger

log = get_logger("kvtransfer")


class CudaCopies:
    """The blocks of `kv` [num_blocks, ...], contiguous on a CUDA device; one thread starts copies.

    Copy engines move each run of neighbours, so that the engine's kernels keep all of the processors.
    """

    def __init__(self, kv: Tensor) -> None:
        self.num_blocks = len(kv)
        self._blocks = kv.view(self.num_blocks, -1).view(torch.uint8)
        self.block_nbytes = self._blocks.shape[1]
        self._device = kv.device
        self.nbytes = self.num_blocks * self.block_nbytes
        # Two: a copy that waits for a step of the engine keeps none of the other direction back.
        self._reads = torch.cuda.Stream(kv.device)  # type: ignore[no-untyped-call]
        self._writes = torch.cuda.Stream(kv.device)  # type: ignore[no-untyped-call]
        self.is_shared = self._is_shared()

    def pin(self, nbytes: int) -> Bytes:
        """Make pinned memory; its array keeps it."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()

    def mark(self) -> Mark:
        """Record an event on the stream on which the calling thread, the engine's, launches its steps."""
        return _record(torch.cuda.current_stream(self._device))

    def to_host(self, block_ids: Sequence[int], to: Bytes) -> Mark:
        """Start one copy for each run of neighbours."""
        host = torch.from_numpy(to).view(len(block_ids), -1)
        with torch.cuda.stream(self._reads):
            at = 0
            for first, stop in runs(block_ids):
                host[at : at + stop - first].copy_(self._blocks[first:stop], non_blocking=True)
                at += stop - first
            return _record(self._reads)

    def to_device(self, source: Bytes, block_ids: Sequence[int], after: Collection[Mark]) -> Mark:
        """Start one copy for each run of neighbours."""
        host = torch.from_numpy(source).view(len(block_ids), -1)
        with torch.cuda.stream(self._writes):
            for mark in after:
                assert isinstance(mark, torch.cuda.Event)
                self._writes.wait_event(mark)
            at = 0
            for first, stop in runs(block_ids):
                self._blocks[first:stop].copy_(host[at : at + stop - first], non_blocking=True)
                at += stop - first
            return _record(self._writes)

    def sum_up(self, block_ids: Sequence[int], note: Bytes) -> Mark:
        """Start one kernel, which reads each block once."""
        with torch.cuda.stream(self._reads):
            self._sum(block_ids, note)
            return _record(self._reads)

    def from_peer(
        self, address: int, places: Sequence[int], block_ids: Sequence[int], note: Bytes, after: Collection[Mark]
    ) -> Mark:
        """Start one copy for each run of blocks that are neighbours on both sides, and one kernel that sums."""
        begin, nbytes = self._blocks.data_ptr(), self.block_nbytes
        with torch.cuda.stream(self._writes):
            for mark in after:
                assert isinstance(mark, torch.cuda.Event)
                self._writes.wait_event(mark)
            for source, to, count in _common_runs(places, block_ids):
                cuda_driver.copy(
                    begin + to * nbytes, address + source * nbytes, count * nbytes, self._writes.cuda_stream
                )
            self._sum(block_ids, note)
            return _record(self._writes)

    def export_memory(self) -> tuple[bytes, int]:
        """Return the handle of the allocation, and where in it block 0 begins."""
        with torch.cuda.stream(self._reads):
            self._reads.query()
            return cuda_driver.export_memory(self._blocks.data_ptr())

    def open_memory(self, handle: bytes) -> int:
        """Map another process's allocation for this device."""
        with torch.cuda.stream(self._writes):
            self._writes.query()  # a thread has a current context only after a first call of the runtime
            return cuda_driver.open_memory(handle)

    def close_memory(self, address: int) -> None:
        """Unmap it."""
        with torch.cuda.stream(self._writes):
            cuda_driver.close_memory(address)

    def _sum(self, block_ids: Sequence[int], note: Bytes) -> None:
        count, at = len(block_ids), MAX_BATCH_BLOCKS * ID_NBYTES
        ids = torch.from_numpy(note[: count * ID_NBYTES]).view(torch.int32)
        ids.copy_(torch.tensor(block_ids, dtype=torch.int32))
        sums = torch.from_numpy(note[at : at + count * DIGEST_NBYTES]).view(torch.int64).view(count, 2)
        block_sums(self._blocks, ids, sums)

    def _is_shared(self) -> bool:
        try:
            self.export_memory()
        except ConfigError as error:
            log.info("memory_not_shared", reason=str(error))
            return False
        return self.block_nbytes % ID_NBYTES == 0


def _common_runs(places: Sequence[int], block_ids: Sequence[int]) -> list[tuple[int, int, int]]:
    """Find the runs that ascend on both sides: the first block of each on either, and how many there are."""
    found: list[tuple[int, int, int]] = []
    for source, to in zip(places, block_ids, strict=True):
        if found and (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]) == (source, to):
            found[-1] = (*found[-1][:2], found[-1][2] + 1)
        else:
            found.append((source, to, 1))
    return found


def _record(stream: torch.cuda.Stream) -> Mark:
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(stream)
    return event
