"""Files: what clients have uploaded, and what batches have answered. Calls wait for the disk: make them in a thread."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from baton.errors import InvalidRequest, refuse
from baton.router.batches.data_dir import flush_folder, is_id, new_id, newest_first, refusing, write_whole

_PART_NBYTES = 2**20


class NoSuchFile(InvalidRequest):
    """No file of this owner has this id."""

    status = 404


class StoredFile(msgspec.Struct, kw_only=True):
    """What is known of a file, as `meta.json` has it."""

    id: str
    filename: str
    purpose: str
    nbytes: int
    created_at: int

    def shown(self) -> dict[str, Any]:
        """Return OpenAI's object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.nbytes,
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
            "expires_at": None,
        }


class Files:
    """One owner's files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "files"

    def add(self, source: BinaryIO, filename: str, purpose: str, *, most: int) -> StoredFile:
        """Keep a copy of a stream.

        Raises:
            InvalidRequest: there are `most` already.
            DataDirFull: the disk takes no more.
        """
        if self._folder.is_dir() and len(os.listdir(self._folder)) >= most:
            raise refuse("file", filename, f"at most {most} files are kept", "Delete some, or raise --max-files.")
        file_id = new_id("file-")
        beside = self._folder / f"{file_id}.part"
        try:
            with refusing():
                beside.mkdir(mode=0o700, parents=True)
                with open(beside / "content", "wb") as out:
                    shutil.copyfileobj(source, out, _PART_NBYTES)
                    out.flush()
                    os.fsync(out.fileno())
                return self.adopt(beside, file_id, filename, purpose)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise

    def adopt(self, folder: Path, file_id: str, filename: str, purpose: str) -> StoredFile:
        """Make a folder with a `content`, which is flushed, one of the files; one that is there already stays."""
        place = self._folder / file_id
        if not place.exists():
            nbytes = (folder / "content").stat().st_size
            stored = StoredFile(
                id=file_id, filename=filename, purpose=purpose, nbytes=nbytes, created_at=int(time.time())
            )
            write_whole(folder / "meta.json", msgspec.json.encode(stored))
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.rename(place)
            flush_folder(self._folder)
        return self.get(file_id)

    def get(self, file_id: str, *, field: str = "file_id") -> StoredFile:
        """Return what is known of a file.

        Raises:
            NoSuchFile: there is none.
        """
        try:
            if is_id(file_id):
                return msgspec.json.decode((self._folder / file_id / "meta.json").read_bytes(), type=StoredFile)
        except FileNotFoundError:
            pass
        raise NoSuchFile(
            f"{field}={file_id[:80]!r} is not valid: there is no such file.", field=field, code="not_found"
        )

    def content(self, file_id: str) -> Path:
        """Return where the bytes of a file are."""
        self.get(file_id)
        return self._folder / file_id / "content"

    def newest_first(self) -> list[str]:
        """Return the ids of all files."""
        return newest_first(self._folder)

    def delete(self, file_id: str) -> None:
        """Forget a file.

        Raises:
            NoSuchFile: there is none.
        """
        self.get(file_id)
        gone = self._folder / f"{file_id}.gone"
        with refusing():
            (self._folder / file_id).rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
