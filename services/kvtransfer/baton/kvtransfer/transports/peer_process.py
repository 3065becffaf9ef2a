"""Another process of this host, seen to end."""

from __future__ import annotations

from pathlib import Path

from baton.errors import ConfigError

_DEAD = "ZXx"


class PeerProcess:
    """A process by its id: ended as soon as it is dead, also while nobody has reaped it.

    `/proc` says so in every container that has it; sandboxes without `pidfd_open` exist.
    """

    def __init__(self, pid: int) -> None:
        """Watch it.

        Raises:
            ConfigError: there is none, or this process cannot see it.
        """
        self._stat = Path(f"/proc/{pid}/stat")
        try:
            _, self._started = self._look()
        except (OSError, ValueError, IndexError) as error:
            raise ConfigError(f"process {pid} cannot be watched: {error}") from None

    def has_ended(self) -> bool:
        """Whether it is dead."""
        try:
            state, started = self._look()
        except (OSError, ValueError, IndexError):
            return True
        return state in _DEAD or started != self._started  # the number may be another process's by now

    def _look(self) -> tuple[str, int]:
        """Return its state, and when it was started."""
        fields = self._stat.read_text().rpartition(")")[2].split()  # its name, in brackets, may hold anything
        return fields[0], int(fields[19])
