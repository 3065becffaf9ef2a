"""A file descriptor by which one thread wakes another out of its poll."""

from __future__ import annotations

import contextlib
import os
import select


class Wakeup:
    """Set from any thread; waited for, and cleared, by one."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        self._poll = select.poll()
        self._poll.register(self._read_fd, select.POLLIN)
        self._is_set = False

    def fileno(self) -> int:
        """Give what a poller registers for reading."""
        return self._read_fd

    def set(self) -> None:
        """Wake the waiter, now or when it next waits."""
        if self._is_set:
            return
        self._is_set = True
        with contextlib.suppress(BlockingIOError):  # full of wake-ups: one is enough
            os.write(self._write_fd, b"\0")

    def clear(self) -> None:
        """Forget wake-ups; call it before looking at what the setters left."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read_fd, 4096)
        # After the read: a setter that still sees the flag left its work before, so the caller finds it.
        self._is_set = False

    def wait(self, timeout_s: float) -> None:
        """Wait until somebody sets it, at most so long; then clear it."""
        self._poll.poll(max(0.0, timeout_s) * 1000)
        self.clear()

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self._read_fd)
        os.close(self._write_fd)
