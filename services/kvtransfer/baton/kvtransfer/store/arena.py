"""The memory that the workers of a host share: one file in a folder of /dev/shm, which each of them maps.

A process that was started anew finds the file of the one before and takes it over, so that what its workers have mapped, and pinned
for their GPUs, goes on serving.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from pathlib import Path

import psutil

from baton.errors import ConfigError

NAME = "arena"
SOCKET = "control"
_LOCK = "lock"
MAX_PATH_LEN = 107
"""What the kernel stores of a unix socket's name."""


class Arena:
    """The file, mapped."""

    def __init__(self, path: Path, fd: int) -> None:
        status = os.fstat(fd)
        self.path = path
        self.nbytes, self.inode = status.st_size, status.st_ino
        self.buffer = mmap.mmap(fd, self.nbytes)
        self.view = memoryview(self.buffer)

    @classmethod
    def make(cls, folder: Path, nbytes: int) -> Arena:
        """Make it, or take over one of this size; every page is there from then on.

        Raises:
            ConfigError: the folder's file system has no room for it.
        """
        path = folder / NAME
        if path.exists() and path.stat().st_size != nbytes:
            path.unlink()
        left = psutil.virtual_memory().available
        if not path.exists() and nbytes > left:
            raise ConfigError(
                f"kv_store_size={nbytes / 2**30:g} GiB is more than the {left / 2**30:.1f} GiB of memory that this host has "
                "left. Lower --kv-store-size."
            )
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            # a page that is not there when somebody writes it would end that process with SIGBUS
            os.posix_fallocate(fd, 0, nbytes)
            return cls(path, fd)
        except OSError as error:
            path.unlink(missing_ok=True)
            room = os.statvfs(folder)
            raise ConfigError(
                f"kv_store_size={nbytes / 2**30:g} GiB does not fit into {folder}, which has "
                f"{room.f_bavail * room.f_frsize / 2**30:.2f} GiB left ({error.strerror}). Lower --kv-store-size, or give /dev/shm "
                "more (Docker: --shm-size; Kubernetes: sizeLimit)."
            ) from None
        finally:
            os.close(fd)

    @classmethod
    def open(cls, folder: Path, inode: int, nbytes: int) -> Arena:
        """Map the store's.

        Raises:
            ConfigError: there is none there, or another one.
        """
        path = folder / NAME
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise ConfigError(f"{path} cannot be opened: {error.strerror}") from None
        try:
            status = os.fstat(fd)
            if (status.st_ino, status.st_size, status.st_uid) != (inode, nbytes, os.geteuid()):
                raise ConfigError(f"{path} is not the store's, or another user's")
            return cls(path, fd)
        except (OSError, ValueError) as error:  # no address space, or no bytes
            raise ConfigError(f"{path} cannot be mapped: {error}") from None
        finally:
            os.close(fd)

    def remove(self) -> None:
        """Remove the file; the memory goes with the last process that has it mapped."""
        self.path.unlink(missing_ok=True)


class StoreFolder:
    """The folder in which a store meets its workers; one store has it at a time."""

    def __init__(self, path: str) -> None:
        """Take it.

        Raises:
            ConfigError: another store has it, it cannot be made, or other users may enter it.
        """
        self.path = Path(path)
        lock = None
        while lock is None:  # a store that ends may remove the file before it is locked
            try:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                status = self.path.stat()
                opened = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                reason = f"{error.strerror}. Name a folder in /dev/shm."
                raise ConfigError(f"kv_store={path!r} is not valid: {reason}") from None
            lock = self._locked(opened)
        self._lock = lock
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise ConfigError(f"kv_store={path!r} is not valid: other users may write there. Name one of your own.")

    @property
    def endpoint(self) -> str:
        """Where the store listens."""
        return endpoint(self.path)

    def close(self) -> None:
        """Give it back; it goes, if nothing else is in it."""
        for name in (SOCKET, _LOCK):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()
        os.close(self._lock)

    def _locked(self, opened: int) -> int | None:
        """Lock an opened file; None, and closed, if it is not the folder's any more."""
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(opened)
            raise ConfigError(
                f"kv_store={str(self.path)!r} is another store's. Give each a folder of its own."
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self.path / _LOCK).st_ino == os.fstat(opened).st_ino:
                return opened
        os.close(opened)
        return None


def endpoint(folder: Path) -> str:
    """Return where the store of a folder listens.

    Raises:
        ConfigError: a socket cannot have this name.
    """
    path = str(folder.absolute() / SOCKET)
    if len(path) > MAX_PATH_LEN or ";" in path:
        raise ConfigError(
            f"kv_store={str(folder)!r} is not valid: at most {MAX_PATH_LEN - 8} characters, none of them ;"
        )
    return f"ipc://{path}"
