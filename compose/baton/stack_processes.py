"""The processes of one `baton up` on this machine, found from the port that its router listens on.

Only descendants of that `baton up` are ever named here: its children that serve, and their engine processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import psutil

from baton.errors import ConfigError

Role = Literal["prefill engine", "prefill face", "decode engine", "decode face", "router", "redis"]
ROLES: tuple[Role, ...] = ("decode engine", "prefill engine", "decode face", "prefill face", "redis", "router")


class StackProcesses:
    """What one `baton up` keeps running, looked up anew each time: what was killed has a successor."""

    def __init__(self, port: int) -> None:
        """Find who listens.

        Raises:
            ConfigError: nobody whom we may see, or no child of a `baton up`.
        """
        router = _listener(port)
        up = None if router is None else router.parent()
        if router is None or up is None or not _serves(router, "router") or not _is_baton(up):
            raise ConfigError(
                f"no `baton up` of yours on this machine listens on port {port}: only its processes are disturbed."
            )
        self._up = up

    def of_role(self, role: Role) -> list[psutil.Process]:
        """Return the processes of a role that run now."""
        leg, _, kind = role.partition(" ")
        try:
            if role == "redis":
                return [child for child in self._up.children() if _is_redis(child)]
            faces = [child for child in self._up.children() if _serves(child, leg)]
            if kind != "engine":
                return faces
            return [child for face in faces for child in face.children() if "baton.engine_process" in child.cmdline()]
        except psutil.NoSuchProcess:  # one of them ended while we looked
            return []


def _listener(port: int) -> psutil.Process | None:
    for connection in psutil.net_connections("tcp"):
        is_here = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
        if is_here and connection.pid is not None:
            return psutil.Process(connection.pid)
    return None


def _serves(process: psutil.Process, service: str) -> bool:
    """Whether a process is a service as `baton up` starts it: `python -m baton.cli SERVICE`."""
    words = _words(process)
    return any(pair == ("baton.cli", service) for pair in pairwise(words))


def _is_redis(process: psutil.Process) -> bool:
    return any(name in Path(word).name for word in _words(process)[:1] for name in ("redis", "valkey"))


def _is_baton(process: psutil.Process) -> bool:
    """Whether a process is the command `baton`, however it was started."""
    return any(Path(word).name in ("baton", "baton.cli", "batonllm", "cli.py") for word in _words(process)[:4])


def _words(process: psutil.Process) -> Sequence[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ()
