"""The secrets of one deployment, a file each: what routers, workers and Redis share and nobody else may know.

    api_key            what clients send                          cache_key        under which blocks are hashed
    curve_public_key   the pair of all routers and workers, for   redis_password   what Redis asks for
    curve_secret_key   requests between hosts

Services take them as BATON_X_FILE, the password of Redis included; a Kubernetes Secret can be made from the folder as it is.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import zmq

from baton.errors import ConfigError

_READABLE = 0o444
"""Containers read them as other users than the one who made them; on a host the folder keeps others out."""


def write_secrets(folder: Path) -> list[str]:
    """Make the secrets that a folder lacks; return the names of what was made.

    A new folder is its owner's alone; one that is there keeps its mode.

    Raises:
        ConfigError: the folder cannot be written, or holds half of the key pair.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        present = {path.name for path in folder.iterdir()}
        made = {name: value for name, value in _generate().items() if name not in present}
        if len(made.keys() & {"curve_public_key", "curve_secret_key"}) == 1:
            raise ConfigError(
                f"{folder} has one of curve_public_key and curve_secret_key: put the other there, or remove it."
            )
        for name, value in made.items():
            _write(folder / name, value)
    except OSError as error:
        raise ConfigError(f"secrets cannot be written to {folder}: {error.strerror}.") from None
    return sorted(made)


def _generate() -> dict[str, str]:
    public, secret = zmq.curve_keypair()
    return {
        "api_key": f"baton-{secrets.token_urlsafe(24)}",
        "cache_key": secrets.token_hex(16),
        "curve_public_key": public.decode(),
        "curve_secret_key": secret.decode(),
        "redis_password": secrets.token_urlsafe(24),
    }


def _write(path: Path, value: str) -> None:
    """Write a file whole or not at all: a half of a key would be taken for one."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _READABLE), "w") as file:
        file.write(value)
    part.chmod(_READABLE)
    part.rename(path)
