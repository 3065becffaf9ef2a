"""What the tests of KV transfer share: memories with known content, tickets, a clock, waiting with a deadline."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from baton.kvtransfer.memory import HostMemory
from baton.kvtransfer.wire import layout_fingerprint

BLOCK_NBYTES = 4096
LAYOUT = layout_fingerprint(BLOCK_NBYTES, "test model")
SECRET = b"s" * 16
DEADLINE_S = 600.0
"""Of what never comes; a busy machine may take long over what does."""


@dataclass(frozen=True)
class TestTicket:
    """The attributes that the transfer reads of a ticket."""

    __test__ = False
    request_id: bytes
    epoch: int = 0
    secret: bytes = SECRET
    layout: str = LAYOUT
    source: str = "host:here;tcp://127.0.0.1:9"
    source_incarnation: str = "exporter-1"


class Clock:
    """A clock that stands until told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Blocks:
    """A host memory that other processes can map, and its bytes as an array [num_blocks, block bytes]."""

    def __init__(
        self, num_blocks: int, *, seed: int | None = None, block_nbytes: int = BLOCK_NBYTES, num_threads: int = 1
    ) -> None:
        fd = os.memfd_create("baton-test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, num_blocks * block_nbytes)
        self.bytes = np.frombuffer(mmap.mmap(fd, 0), dtype=np.uint8).reshape(num_blocks, block_nbytes)
        if seed is not None:
            self.bytes[:] = np.random.default_rng(seed).integers(0, 256, self.bytes.shape, dtype=np.uint8)
        self.memory = HostMemory(self.bytes, num_blocks, fd=fd, num_threads=num_threads)


def request_id(number: int) -> bytes:
    """Make a request id."""
    return number.to_bytes(16, "big")


def block_hashes(number: int, num_blocks: int) -> list[bytes]:
    """Make the block hashes of a request."""
    return [bytes([7]) * 8 + number.to_bytes(4, "big") + at.to_bytes(4, "big") for at in range(num_blocks)]


def wait_until(condition: Callable[[], bool], step: Callable[[], None] | None = None) -> None:
    """Run `step` until the condition holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come"
        if step is None:
            time.sleep(0.001)
        else:
            step()
