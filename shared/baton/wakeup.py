"""A file descriptor by which threads wake one that polls."""

from __future__ import annotations

import contextlib
import os
import select
import threading


class Wakeup:
    """Set from any thread, at any time; waited for, cleared and closed by one."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # Between a look at the descriptor and a write to it, its number could become another file's.
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def fileno(self) -> int:
        """Return what to poll; readable after `set`."""
        return self._fd

    def set(self) -> None:
        """Wake the waiter, now or when it next waits; do nothing once closed."""
        with self._lock:
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Forget wake-ups; call it before looking at what the setters left."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def wait(self, timeout_s: float) -> None:
        """Wait until somebody sets it, at most so long; then clear it."""
        self._poll.poll(max(0.0, timeout_s) * 1000)
        self.clear()

    def close(self) -> None:
        """Close the descriptor."""
        with self._lock:
            fd, self._fd = self._fd, -1
            os.close(fd)
