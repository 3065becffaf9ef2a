"""Memory that an exporter shares with its host: sockets say where blocks lie, and the importer copies them.

The exporter's blocks lie in a file without a name (`memfd_create`), which the importer opens through `/proc` and maps to be
read only: nothing of it outlives the two processes. The kernel opens it for processes of the same user alone. It is
sealed: a file that could become shorter would end, with SIGBUS, whoever reads what it had. The sockets are unix sockets.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Sequence

from baton.errors import ConfigError
from baton.kvtransfer.memory import PeerMemory
from baton.kvtransfer.transports.ipc import IpcTransport
from baton.kvtransfer.transports.transport import Socket


class ShmTransport(IpcTransport):
    """Share the file of descriptor `fd`, which begins with the blocks; a process that only fetches needs none.

    The file is made with `MFD_ALLOW_SEALING`, and keeps its size from `bind` on.
    """

    scheme = "shm"

    def __init__(self, fd: int | None = None) -> None:
        super().__init__()
        self._fd = fd

    def bind(self, socket: Socket, stripe: int) -> str:
        """Listen; return the address to announce: `SCHEME://SOCKET#PID/FD/INODE`."""
        assert self._fd is not None, "who shares no memory does not listen for those who would read it"
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        path = super().bind(socket, stripe).removeprefix("ipc://")
        return f"{self.scheme}://{path}#{os.getpid()}/{self._fd}/{os.fstat(self._fd).st_ino}"

    def reaches(self, addresses: Sequence[str], *, same_host: bool) -> bool:
        """Look for the socket and the file: another container's or user's cannot be opened."""
        socket, _ = _split(addresses[0])
        if not super().reaches([socket], same_host=same_host):
            return False
        with contextlib.suppress(ConfigError):
            os.close(open_file(addresses[0]))
            return True
        return False

    def connect(self, socket: Socket, address: str) -> None:
        """Connect to an exporter's socket."""
        super().connect(socket, _split(address)[0])

    def map(self, address: str) -> PeerMemory:
        """Map the exporter's file, to be read only."""
        fd = open_file(address)
        try:
            view = memoryview(mmap.mmap(fd, 0, prot=mmap.PROT_READ))
            return PeerMemory(view, len(view))
        except (OSError, ValueError) as error:  # no address space, or no bytes
            raise ConfigError(f"the memory of {address} cannot be mapped: {error}") from None
        finally:
            os.close(fd)


def _split(address: str) -> tuple[str, str]:
    """Split off the socket's address from process, descriptor and inode of the file."""
    path, _, file = address.partition("://")[2].rpartition("#")
    return f"ipc://{path}", file


def open_file(address: str, access: int = os.O_RDONLY) -> int:
    """Open the file, if it is the one that was announced and keeps its size.

    Raises:
        ConfigError: it is not, or cannot be opened.
    """
    try:
        pid, number, inode = map(int, _split(address)[1].split("/"))
        # Another file may have the number by now: opening it must not wait, as for a pipe's other end.
        flags = access | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        fd = os.open(f"/proc/{pid}/fd/{number}", flags)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the memory of {address} cannot be opened: {error}") from None
    if os.fstat(fd).st_ino == inode and _keeps_its_size(fd):
        return fd
    os.close(fd)
    raise ConfigError(f"the memory of {address} is gone")  # the process ended, and another has its number


def _keeps_its_size(fd: int) -> bool:
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except OSError:  # no memory file
        return False
