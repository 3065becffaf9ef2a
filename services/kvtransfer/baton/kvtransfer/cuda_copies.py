"""Copies between the KV cache of a GPU and pinned host memory, on streams of their own."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from baton.kvtransfer.device_memory import Mark
from baton.kvtransfer.memory import Bytes, runs


class CudaCopies:
    """The blocks of `kv` [num_blocks, ...], contiguous on a CUDA device; one thread starts copies.

    Copy engines move each run of neighbours, so that the engine's kernels keep all of the processors.
    """

    def __init__(self, kv: Tensor) -> None:
        self.num_blocks = len(kv)
        self._blocks = kv.view(self.num_blocks, -1).view(torch.uint8)
        self.block_nbytes = self._blocks.shape[1]
        self._device = kv.device
        # Two: a copy that waits for a step of the engine keeps none of the other direction back.
        self._reads = torch.cuda.Stream(kv.device)  # type: ignore[no-untyped-call]
        self._writes = torch.cuda.Stream(kv.device)  # type: ignore[no-untyped-call]

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


def _record(stream: torch.cuda.Stream) -> Mark:
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(stream)
    return event
