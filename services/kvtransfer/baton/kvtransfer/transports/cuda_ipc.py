"""GPU memory that an exporter shares with its host: sockets say where blocks lie, and the importer's GPU copies them.

The importer maps the exporter's pool once, by CUDA's handle, and its copy engine reads blocks over NVLink or PCIe, or from
the same GPU. The sockets are unix sockets. What is mapped is as open as shared memory: to processes of the same user.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from baton.errors import ConfigError
from baton.kvtransfer.memory import PeerMemory
from baton.kvtransfer.transports.ipc import IpcTransport
from baton.kvtransfer.transports.peer_process import PeerProcess
from baton.kvtransfer.transports.transport import Socket

LEAST_RATE = 8e9
"""Bytes a second. Two GPUs that read each other over PCIe do 20e9 and more; on some machines the way between them is slower
than through the host's memory."""


class DeviceSharing(Protocol):
    """What a device does for processes that share their blocks; `CudaCopies` is one."""

    @property
    def nbytes(self) -> int:
        """Of all blocks."""

    def export_memory(self) -> tuple[bytes, int]:
        """Return the handle that opens the blocks' allocation elsewhere, and where in it block 0 begins.

        Raises:
            ConfigError: it cannot be shared.
        """

    def open_memory(self, handle: bytes) -> int:
        """Map another process's allocation; return its address.

        Raises:
            ConfigError: it is gone, or out of this device's reach.
        """

    def close_memory(self, address: int) -> None:
        """Unmap it."""

    def measure(self, address: int, nbytes: int) -> float:
        """Copy some of what is mapped aside; return the rate in bytes a second.

        Raises:
            ConfigError: it cannot be read.
        """


class CudaIpcTransport(IpcTransport):
    """Share a device's blocks, and read those of others; `address` is `cuda_ipc://SOCKET#PID/HANDLE/OFFSET/NBYTES`."""

    scheme = "cuda_ipc"

    def __init__(self, device: DeviceSharing) -> None:
        super().__init__()
        self._device = device

    def bind(self, socket: Socket, stripe: int) -> str:
        """Listen; return the address to announce."""
        handle, offset = self._device.export_memory()
        path = super().bind(socket, stripe).removeprefix("ipc://")
        return f"cuda_ipc://{path}#{os.getpid()}/{handle.hex()}/{offset}/{self._device.nbytes}"

    def reaches(self, addresses: Sequence[str], *, same_host: bool) -> bool:
        """Look for the socket and the process; whether their GPU is in reach shows when it is mapped."""
        path, pid, *_ = _split(addresses[0])
        return super().reaches([f"ipc://{path}"], same_host=same_host) and os.path.exists(f"/proc/{pid}")

    def connect(self, socket: Socket, address: str) -> None:
        """Connect to an exporter's socket."""
        super().connect(socket, f"ipc://{_split(address)[0]}")

    def map(self, address: str) -> PeerMemory:
        """Map the exporter's blocks."""
        _, pid, handle, offset, nbytes = _split(address)
        process = PeerProcess(int(pid))
        begin = self._device.open_memory(bytes.fromhex(handle))
        try:
            rate = self._device.measure(begin + int(offset), int(nbytes))
            if rate < LEAST_RATE:
                raise ConfigError(f"only {rate / 1e9:.1f} GB/s from one GPU to the other")
        except ConfigError:
            self._device.close_memory(begin)
            raise
        return PeerMemory(
            begin + int(offset), int(nbytes), partial(self._device.close_memory, begin), process.has_ended, rate=rate
        )


def _split(address: str) -> list[str]:
    path, _, memory = address.removeprefix("cuda_ipc://").rpartition("#")
    parts = [path, *memory.split("/")]
    if len(parts) != 5 or not all(part.isdigit() for part in (parts[1], *parts[3:])):
        raise ConfigError(f"{address[:80]!r} names no memory of a GPU")
    return parts
