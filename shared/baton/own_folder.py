"""OwnFolder: a temporary folder that nobody else enters, and that goes with its process, however that ends.

Its owner holds a lock on it. One whose lock is free belonged to a process that was killed: the next process that makes a
folder of the same kind removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
from pathlib import Path


class OwnFolder:
    """A folder of this process, and of this user."""

    def __init__(self, prefix: str, *, within: str | None = None) -> None:
        """Make it in `within`, or where temporary files go, and remove those of its prefix that dead processes left."""
        for left in Path(within or tempfile.gettempdir()).glob(f"{prefix}*"):
            _remove_dead(left)
        lock = None
        while lock is None:  # another process may take it for a dead one's before it is locked
            self.path = tempfile.mkdtemp(prefix=prefix, dir=within)
            lock = _lock(self.path)
        self._lock = lock

    def close(self) -> None:
        """Remove it, with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _lock(folder: str) -> int | None:
    """Lock a new folder for as long as this process lives; None: it is gone already."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_SH)
        if os.stat(folder).st_ino == os.fstat(fd).st_ino:
            return fd
    os.close(fd)
    return None


def _remove_dead(folder: Path) -> None:
    """Remove a folder of ours that no process has: nobody holds its lock, nobody listens in it."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # gone, no folder, or another user's
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_uid == os.geteuid() and not any(_listens(path) for path in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # locked: its process lives
        pass
    finally:
        os.close(fd)


def _listens(path: Path) -> bool:
    """Whether a process listens at a file: older versions held no lock."""
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(str(path)) == 0
