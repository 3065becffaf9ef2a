"""Blocks on disk: one file a block, written beside and renamed, found again by the next process.

    FOLDER/LAYOUT/xx/NAME     LAYOUT: the layout's fingerprint; xx: the first byte of the block's name; both in hex
    file = magic (8 bytes) | nbytes (8, little-endian) | key (32) | checksum (16) | digest (16) | the block

The digest is xxh3-128 of all but itself. Nothing is synced: what a crash left torn has another size or digest, and is dropped when
it is found so. Files are evicted by last use, which their times of change tell the next process. Methods may be called from
several threads.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

from xxhash import xxh3_128

from baton.errors import ConfigError
from baton.kvtransfer.store.messages import DIGEST_NBYTES
from baton.logs import get_logger

_MAGIC = b"batonKV1"
_HEAD = struct.Struct("<8sQ32s16s16s")
_DIGEST_AT = _HEAD.size - DIGEST_NBYTES
_TEMPORARY = ".part"
log = get_logger("kvstore")


class BlockFiles:
    """A bounded folder of blocks, by key."""

    def __init__(self, folder: str, limit_nbytes: int, on_change: Callable[[bytes], None] = lambda key: None) -> None:
        """`on_change` hears the key of each block that was written or removed, in the thread that did it.

        Raises:
            ConfigError: the folder cannot be made or written to.
        """
        self.folder = Path(folder)
        self.limit_nbytes = limit_nbytes
        self.on_change = on_change
        self.used_nbytes = 0
        self.num_damaged = 0
        self.is_full = False
        """Whether the disk took no more; nothing is written from then on."""
        self._lock = threading.Lock()
        self._sizes: OrderedDict[bytes, int] = OrderedDict()
        """Bytes of each file, least recently used first."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"kv_store_dir={folder!r} is not valid: {error.strerror}.") from None
        if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
            raise ConfigError(f"kv_store_dir={folder!r} is not valid: this user may not read and write there.")

    def __contains__(self, key: bytes) -> bool:
        return key in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def keys(self) -> list[bytes]:
        """All keys."""
        with self._lock:
            return list(self._sizes)

    def scan(self) -> None:
        """Find what an earlier process left; what is torn is removed, with one line for all."""
        found, num_damaged = [], 0
        for path in self._files():
            with contextlib.suppress(OSError):
                status = path.stat()
                key = _key_in(path, status.st_size)
                if key is None:
                    path.unlink()
                    num_damaged += not path.name.endswith(_TEMPORARY)
                else:
                    found.append((status.st_mtime_ns, key, status.st_size))
        with self._lock:
            for _time, key, nbytes in sorted(found):
                self._sizes[key] = nbytes
                self.used_nbytes += nbytes
        self.num_damaged += num_damaged
        if num_damaged:
            log.warning("stored_blocks_dropped", number=num_damaged, reason="torn or of another format")
        self._make_room(0)

    def write(self, key: bytes, checksum: bytes, block: memoryview) -> bool:
        """Write a block; whether it is there. A disk that takes no more ends all writing, with one line."""
        if self.is_full or not self._make_room(_HEAD.size + len(block)):
            return False
        path = self._path(key)
        part = path.with_name(f"{path.name}{_TEMPORARY}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(part, "wb", buffering=0) as file:
                for piece in (_head(key, checksum, block), block):
                    if file.write(piece) != len(piece):
                        raise OSError(28, "the disk is full")
            os.replace(part, path)
        except OSError as error:
            self.is_full = True
            with contextlib.suppress(OSError):
                part.unlink()
            log.error(
                "kv_store_dir_off",
                folder=str(self.folder),
                reason=error.strerror,
                effect="no block is written any more",
            )
            return False
        with self._lock:
            self.used_nbytes += _HEAD.size + len(block) - self._sizes.pop(key, 0)
            self._sizes[key] = _HEAD.size + len(block)
        self.on_change(key)
        return True

    def read(self, key: bytes, to: memoryview) -> bytes | None:
        """Read a block; return its checksum. None: it is not there, or damaged, and then it is removed, with a line."""
        try:
            checksum = _read(self._path(key), key, to)
        except OSError as error:
            checksum, reason = None, error.strerror
        else:
            reason = "its bytes are not those that were written"
        if checksum is not None:
            with self._lock, contextlib.suppress(KeyError, OSError):
                self._sizes.move_to_end(key)
                os.utime(self._path(key), ns=(time.time_ns(), time.time_ns()))  # finer than the kernel's own clock
            return checksum
        if self._remove(key):
            self.num_damaged += 1
            log.warning("stored_block_dropped", file=str(self._path(key)), reason=reason)
        return None

    def remove(self, key: bytes) -> None:
        """Forget a block."""
        self._remove(key)

    def _make_room(self, nbytes: int) -> bool:
        """Remove the least recently used until so much more fits; whether it does."""
        while self.used_nbytes + nbytes > self.limit_nbytes:
            with self._lock:
                oldest = next(iter(self._sizes), None)
            if oldest is None:
                return False
            self._remove(oldest)
        return True

    def _remove(self, key: bytes) -> bool:
        with self._lock:
            nbytes = self._sizes.pop(key, None)
            if nbytes is None:
                return False
            self.used_nbytes -= nbytes
        with contextlib.suppress(OSError):
            self._path(key).unlink()
        self.on_change(key)
        return True

    def _path(self, key: bytes) -> Path:
        layout, name = key[:DIGEST_NBYTES].hex(), key[DIGEST_NBYTES:].hex()
        return self.folder / layout / name[:2] / name

    def _files(self) -> Iterator[Path]:
        """Every file that looks like one of ours, so that what else lies in the folder stays."""
        names = "[0-9a-f]" * 2
        for folder in self.folder.glob(f"{'[0-9a-f]' * 2 * DIGEST_NBYTES}/{names}"):
            yield from folder.iterdir()


def _head(key: bytes, checksum: bytes, block: memoryview) -> bytes:
    digest = _digest(_HEAD.pack(_MAGIC, len(block), key, checksum, bytes(DIGEST_NBYTES)), block)
    return _HEAD.pack(_MAGIC, len(block), key, checksum, digest)


def _digest(head: bytes, block: memoryview) -> bytes:
    total = xxh3_128(head[:_DIGEST_AT])
    total.update(block)
    return total.digest()


def _key_in(path: Path, nbytes: int) -> bytes | None:
    """Return the key of a block's file that has its size and its place; None: it is none."""
    if nbytes <= _HEAD.size:
        return None
    with open(path, "rb", buffering=0) as file:
        magic, block_nbytes, key, _checksum, _digest = _HEAD.unpack(file.read(_HEAD.size))
    is_whole = magic == _MAGIC and block_nbytes == nbytes - _HEAD.size
    is_placed = path.name == key[DIGEST_NBYTES:].hex() and path.parent.parent.name == key[:DIGEST_NBYTES].hex()
    return key if is_whole and is_placed else None


def _read(path: Path, key: bytes, to: memoryview) -> bytes | None:
    with open(path, "rb", buffering=0) as file:
        head = file.read(_HEAD.size)
        if len(head) != _HEAD.size or file.readinto(to) != len(to) or file.read(1):
            return None
    magic, nbytes, its_key, checksum, digest = _HEAD.unpack(head)
    if (magic, nbytes, its_key) != (_MAGIC, len(to), key) or digest != _digest(head, to):
        return None
    return bytes(checksum)
