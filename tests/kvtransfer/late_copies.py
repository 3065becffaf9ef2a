"""A device whose copies end some time after they were started, in two orders of their own, as a GPU's streams do."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from baton.kvtransfer.device_memory import Mark, Sums
from baton.kvtransfer.memory import Bytes
from baton.kvtransfer.wire import checksum


@dataclass(eq=False)
class LateMark:
    """Reached when told, or when somebody has asked or waited long enough."""

    on_ask: Callable[[], None] = lambda: None
    on_wait: Callable[[], None] = lambda: None
    reached: bool = False

    def query(self) -> bool:
        self.on_ask()
        return self.reached

    def synchronize(self) -> None:
        self.on_wait()
        assert self.reached, "waits for what cannot come"


@dataclass(eq=False)
class LateSums:
    """Sums that are made when their mark is reached."""

    sums: bytearray
    mark: LateMark

    def query(self) -> bool:
        return self.mark.query()

    def read(self) -> bytes:
        assert self.mark.reached
        return bytes(self.sums)


@dataclass(eq=False)
class Copy:
    run: Callable[[], None]
    after: Collection[LateMark]
    mark: LateMark


@dataclass
class LateCopies:
    """Blocks `bytes` [num_blocks, block bytes]; a copy runs after so many questions, or when `work` is called."""

    bytes: Bytes
    patience: int = 3
    engine: LateMark = field(default_factory=lambda: LateMark(reached=True))
    """What `mark` gives: the engine's last step."""
    reads: deque[Copy] = field(default_factory=deque)
    writes: deque[Copy] = field(default_factory=deque)
    num_asked: int = 0
    is_shared: bool = True
    num_read: int = 0
    """Blocks that were read from a peer's memory."""

    @property
    def num_blocks(self) -> int:
        return len(self.bytes)

    @property
    def block_nbytes(self) -> int:
        return int(self.bytes.shape[1])

    def pin(self, nbytes: int) -> Bytes:
        return np.full(nbytes, 0xEE, dtype=np.uint8)

    def pin_shared(self, nbytes: int) -> tuple[Bytes, int | None]:
        fd = os.memfd_create("baton-test-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, nbytes)
        return np.frombuffer(mmap.mmap(fd, nbytes), dtype=np.uint8), fd

    def mark(self) -> Mark:
        return self.engine

    def to_host(self, block_ids: Sequence[int], to: Bytes) -> Mark:
        def run() -> None:
            to.reshape(len(block_ids), -1)[:] = self.bytes[list(block_ids)]

        return self._start(self.reads, run, ())

    def to_device(self, source: Bytes, block_ids: Sequence[int], after: Collection[Mark]) -> Mark:
        def run() -> None:
            self.bytes[list(block_ids)] = source.reshape(len(block_ids), -1)

        return self._start(self.writes, run, cast(Collection[LateMark], after))

    def sum_up(self, block_ids: Sequence[int]) -> Sums:
        sums = bytearray()
        return LateSums(sums, self._start(self.reads, lambda: self._sum(block_ids, sums), ()))

    def to_ring(self, block_ids: Sequence[int], ring: Bytes, places: Sequence[int]) -> Sums:
        sums = bytearray()

        def run() -> None:
            to = ring[: len(ring) // self.block_nbytes * self.block_nbytes].reshape(-1, self.block_nbytes)
            to[list(places)] = self.bytes[list(block_ids)]
            self._sum(block_ids, sums)

        return LateSums(sums, self._start(self.reads, run, ()))

    def from_peer(self, address: int, places: Sequence[int], block_ids: Sequence[int], after: Collection[Mark]) -> Sums:
        """Read from an address of this process, such as another `LateCopies`' `bytes.ctypes.data`."""
        sums = bytearray()
        self.num_read += len(places)

        def run() -> None:
            nbytes = self.block_nbytes
            for place, block_id in zip(places, block_ids, strict=True):
                ctypes.memmove(self.bytes[block_id].ctypes.data, address + place * nbytes, nbytes)
            self._sum(block_ids, sums)

        return LateSums(sums, self._start(self.writes, run, cast(Collection[LateMark], after)))

    def _sum(self, block_ids: Sequence[int], sums: bytearray) -> None:
        for block_id in block_ids:
            sums += checksum(self.bytes[block_id].data)

    def work(self, num_copies: int = 1_000_000) -> None:
        """Run the next copies of each order, as far as what they wait for has been reached."""
        for queue in (self.reads, self.writes):
            for _ in range(num_copies):
                if not queue or not all(mark.reached for mark in queue[0].after):
                    break
                copy = queue.popleft()
                copy.run()
                copy.mark.reached = True

    def _start(self, queue: deque[Copy], run: Callable[[], None], after: Collection[LateMark]) -> LateMark:
        mark = LateMark(self._asked, self.work)
        queue.append(Copy(run, after, mark))
        return mark

    def _asked(self) -> None:
        self.num_asked += 1
        if self.num_asked % self.patience == 0:
            self.work(1)


def random_blocks(num_blocks: int, nbytes: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Make blocks [num_blocks, nbytes] of random bytes."""
    return np.random.default_rng(seed).integers(0, 256, (num_blocks, nbytes), dtype=np.uint8)
