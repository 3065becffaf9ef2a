"""Host memory that an exporter's GPU copies blocks into and an importer's copies them out of; sockets say where they lie.

Between GPUs that cannot read each other. The exporter's ring lies in a file without a name, as with `shm`; here the importer
maps it writable, as CUDA pins such memory alone everywhere, and never writes. Bytes cross PCIe twice, both ways at once, and
no processor touches them. The sockets are unix sockets.
"""

from __future__ import annotations

import mmap
import os
from functools import partial
from typing import Protocol

import numpy as np

from baton.errors import ConfigError
from baton.kvtransfer.memory import Bytes, PeerMemory
from baton.kvtransfer.transports.peer_process import PeerProcess
from baton.kvtransfer.transports.shm import ShmTransport, open_file
from baton.kvtransfer.wire import Reads


class HostReading(Protocol):
    """What a device does to read host memory that was mapped; `CudaCopies` does."""

    def register(self, room: Bytes) -> None:
        """Let copies reach it.

        Raises:
            ConfigError: they cannot.
        """

    def unregister(self, room: Bytes) -> None:
        """End that."""

    def measure(self, address: int, nbytes: int) -> float:
        """Copy some of it aside; return the rate in bytes a second.

        Raises:
            ConfigError: it cannot be read.
        """


class ShmRingTransport(ShmTransport):
    """Share the ring of descriptor `fd`, and read those of others."""

    scheme = "shm_ring"

    def __init__(self, device: HostReading, fd: int | None = None) -> None:
        super().__init__(fd)
        self._device = device

    def map(self, address: str) -> PeerMemory:
        """Map the exporter's ring and pin it here too."""
        fd = open_file(address, os.O_RDWR)
        try:
            process = PeerProcess(int(address.rpartition("#")[2].partition("/")[0]))
            room = np.frombuffer(mmap.mmap(fd, 0), dtype=np.uint8)
        except (OSError, ValueError) as error:  # no address space, or no bytes
            raise ConfigError(f"the ring of {address} cannot be mapped: {error}") from None
        finally:
            os.close(fd)
        self._device.register(room)
        close = partial(self._device.unregister, room)
        try:
            rate = self._device.measure(room.ctypes.data, room.nbytes)
        except ConfigError:
            close()
            raise
        return PeerMemory(room.ctypes.data, room.nbytes, close, process.has_ended, Reads.RING, rate)
