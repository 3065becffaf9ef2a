"""Memory that a source shares with the processes of its host: sockets say where blocks lie, and the sink copies them.

The source's blocks lie in a file without a name (`memfd_create`), which the sink opens through `/proc` and maps to be
read only: nothing of it outlives the two processes. The sockets are unix sockets.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Sequence

from baton.errors import ConfigError
from baton.kvtransfer.transports.ipc import IpcTransport
from baton.kvtransfer.transports.transport import Socket


class ShmTransport(IpcTransport):
    """Share the file of descriptor `fd`, which begins with the blocks; a process that only fetches needs none."""

    scheme = "shm"

    def __init__(self, fd: int | None = None, folder: str | None = None) -> None:
        super().__init__(folder)
        self._fd = fd

    def bind(self, socket: Socket, stripe: int) -> str:
        """Listen, and give the address to announce: `shm://SOCKET#PID/FD/INODE`."""
        assert self._fd is not None, "who shares no memory does not listen for those who would read it"
        path = super().bind(socket, stripe).removeprefix("ipc://")
        return f"shm://{path}#{os.getpid()}/{self._fd}/{os.fstat(self._fd).st_ino}"

    def reaches(self, addresses: Sequence[str], *, same_host: bool) -> bool:
        """Look for the socket and the file: another container's or user's cannot be opened."""
        socket, _ = _split(addresses[0])
        if not super().reaches([socket], same_host=same_host):
            return False
        with contextlib.suppress(ConfigError):
            os.close(_open(addresses[0]))
            return True
        return False

    def connect(self, socket: Socket, address: str) -> None:
        """Connect to a source's socket."""
        super().connect(socket, _split(address)[0])

    def map(self, address: str) -> memoryview:
        """Map the source's blocks.

        Raises:
            ConfigError: they are gone.
        """
        fd = _open(address)
        try:
            return memoryview(mmap.mmap(fd, 0, prot=mmap.PROT_READ))
        finally:
            os.close(fd)


def _split(address: str) -> tuple[str, str]:
    """Give the socket's address, and process, descriptor and inode of the file."""
    path, _, file = address.removeprefix("shm://").rpartition("#")
    return f"ipc://{path}", file


def _open(address: str) -> int:
    try:
        pid, number, inode = map(int, _split(address)[1].split("/"))
        fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the memory of {address} cannot be opened: {error}") from None
    if os.fstat(fd).st_ino != inode:  # the process ended, and another has its number
        os.close(fd)
        raise ConfigError(f"the memory of {address} is gone")
    return fd
