"""Another process of this host, seen to end."""

from __future__ import annotations

import os
import select

from baton.errors import ConfigError


class PeerProcess:
    """A process by its id: ended as soon as it is dead, also while nobody has reaped it."""

    def __init__(self, pid: int) -> None:
        """Watch it.

        Raises:
            ConfigError: there is none, or this system cannot watch it.
        """
        try:
            self._fd = os.pidfd_open(pid)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"process {pid} cannot be watched: {error}") from None
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def has_ended(self) -> bool:
        """Whether it is dead."""
        return bool(self._poll.poll(0))

    def close(self) -> None:
        """Watch no more."""
        os.close(self._fd)
