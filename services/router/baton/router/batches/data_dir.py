"""DataDir: where a router keeps what must outlive it. Several routers may share one.

    secret                     names owners on disk, so that a key cannot be guessed from a name
    <owner>/files/<id>/        meta.json, content
    <owner>/batches/<id>/      see `batch.py`

A record is written whole or not at all: to a file beside it, flushed, then renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from baton.errors import BatonError, ConfigError
from baton.router.auth import tenant_of

EVERYBODY = "everybody"
"""The owner where no keys are set."""
_ID = re.compile(r"(file|batch)[-_][0-9a-f]{28}", re.ASCII)


class DataDirFull(BatonError):
    """The disk takes no more."""

    status = 507


class DataDir:
    """The folder, and which part of it belongs to whom."""

    def __init__(self, path: str, keys: Sequence[str], cache_key: str) -> None:
        """Make it.

        Raises:
            ConfigError: it cannot be made, or nothing can be written there.
        """
        self.path = Path(path)
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            secret = self._secret()
        except OSError as error:
            raise ConfigError(f"data_dir={path!r} is not valid: {error}.") from None
        self._owners = {b"": EVERYBODY} | {tenant_of(key, cache_key): _owner_of(key, secret) for key in keys}
        self.tenants = {owner: tenant for tenant, owner in self._owners.items() if bool(tenant) == bool(keys)}
        """By owner; what belongs to a key that is no more is nobody's."""

    def of(self, tenant: bytes) -> Path:
        """Return a tenant's own folder."""
        return self.path / self._owners[tenant]

    def _secret(self) -> bytes:
        file = self.path / "secret"
        if not file.exists():
            own = self.path / f"secret.{secrets.token_hex(4)}"
            write_whole(own, secrets.token_bytes(32))
            with contextlib.suppress(FileExistsError):  # another router was first
                os.link(own, file)
            own.unlink()
        return file.read_bytes()


def _owner_of(key: str, secret: bytes) -> str:
    return hashlib.blake2b(key.encode(), key=secret[:64], digest_size=16).hexdigest()


def new_id(kind: str) -> str:
    """Make an id; those of a kind sort by when they were made."""
    return f"{kind}{time.time_ns() // 1000:016x}{secrets.token_hex(6)}"


def is_id(text: str) -> bool:
    """Whether it can be an id, and so the name of a folder."""
    return _ID.fullmatch(text) is not None


def newest_first(folder: Path) -> list[str]:
    """Return the ids that a folder holds, of which there may be none yet."""
    try:
        return sorted(filter(is_id, os.listdir(folder)), reverse=True)
    except FileNotFoundError:
        return []


def write_whole(file: Path, content: bytes) -> None:
    """Write a file so that it is there whole, or as it was, whatever happens.

    Raises:
        DataDirFull: there is no room, or no right.
    """
    beside = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    with refusing():
        try:
            with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
            beside.rename(file)
        finally:
            beside.unlink(missing_ok=True)
        flush_folder(file.parent)


def flush_folder(folder: Path) -> None:
    """Have the names in a folder survive a loss of power."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turn what the disk refuses into an error that says so."""
    try:
        yield
    except OSError as error:
        raise DataDirFull(f"--data-dir takes nothing more: {error.strerror}. Delete files, or make room.") from error
