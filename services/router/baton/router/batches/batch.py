"""A batch on disk: what was asked for, how far it has come, and who works at it.

    batch.json     what OpenAI's object shows; written whole by the router that holds the lock
    lock           held, by flock, by the router that runs the batch; the kernel frees it whatever ends that router
    cancel         there once somebody asked to cancel
    output.jsonl   the lines of the results so far, then those of the errors: appended, flushed, never rewritten
    errors.jsonl

States: validating -> in_progress -> finalizing -> completed | expired | cancelled; validating -> failed.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any, Literal

import msgspec

from baton.errors import InvalidRequest
from baton.router.batches.data_dir import flush_folder, is_id, new_id, newest_first, write_whole

WINDOW_S = 24 * 3600
"""The one completion window that there is."""
State = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelled"]
OPEN: tuple[State, ...] = ("validating", "in_progress", "finalizing")
_TIMES = (
    *("in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at"),
    *("expired_at", "cancelling_at", "cancelled_at"),
)


class NoSuchBatch(InvalidRequest):
    """No batch of this owner has this id."""

    status = 404


class Counts(msgspec.Struct):
    """How many lines there are, and how they ended so far."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchError(msgspec.Struct):
    """What is wrong with a batch as a whole."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class Batch(msgspec.Struct, kw_only=True):
    """What `batch.json` holds."""

    id: str
    endpoint: str
    input_file_id: str
    metadata: dict[str, str] | None
    created_at: int
    state: State = "validating"
    counts: Counts = msgspec.field(default_factory=Counts)
    errors: list[BatchError] = []
    output_file_id: str | None = None
    error_file_id: str | None = None
    times: dict[str, int] = {}
    ending: State = "completed"
    """What it becomes after `finalizing`."""
    result_ids: tuple[str, str] = msgspec.field(default_factory=lambda: (new_id("file-"), new_id("file-")))
    """Of the output and the errors, should there be some: fixed, so that what is done twice gives one file."""

    @property
    def expires_at(self) -> int:
        """When what is left is given up."""
        return self.created_at + WINDOW_S

    @property
    def is_open(self) -> bool:
        return self.state in OPEN

    def enter(self, state: State) -> None:
        """Go on to a state, at this moment."""
        self.state = state
        self.times = {**self.times, f"{state}_at": int(time.time())}


class BatchFolder:
    """One batch's folder. Calls wait for the disk."""

    def __init__(self, path: Path, owner: Path) -> None:
        self.path = path
        self.owner = owner
        """The folder of whom it belongs to, where its files are."""
        self._lock: int | None = None

    def load(self) -> Batch:
        return msgspec.json.decode((self.path / "batch.json").read_bytes(), type=Batch)

    def save(self, batch: Batch) -> None:
        write_whole(self.path / "batch.json", msgspec.json.encode(batch))

    def try_lock(self) -> bool:
        """Take the batch for this router; False: another one, or this one, has it."""
        if self._lock is not None:
            return False
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return False
        self._lock = fd
        return True

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def ask_to_cancel(self) -> None:
        (self.path / "cancel").touch(0o600)

    @property
    def cancelling_at(self) -> int | None:
        """When somebody asked to cancel."""
        try:
            return int((self.path / "cancel").stat().st_mtime)
        except FileNotFoundError:
            return None

    def shown(self) -> dict[str, Any]:
        """Return OpenAI's object."""
        batch, cancelling_at = self.load(), self.cancelling_at
        times = dict.fromkeys(_TIMES) | batch.times | {"expires_at": batch.expires_at, "cancelling_at": cancelling_at}
        errors = {"object": "list", "data": [msgspec.structs.asdict(error) for error in batch.errors]}
        return {
            "id": batch.id,
            "object": "batch",
            "endpoint": batch.endpoint,
            "errors": errors if batch.errors else None,
            "input_file_id": batch.input_file_id,
            "completion_window": "24h",
            "status": "cancelling" if batch.is_open and cancelling_at is not None else batch.state,
            "output_file_id": batch.output_file_id,
            "error_file_id": batch.error_file_id,
            "created_at": batch.created_at,
            **{name: times[name] for name in _TIMES},
            "request_counts": msgspec.structs.asdict(batch.counts),
            "metadata": batch.metadata,
        }


class OwnersBatches:
    """One owner's batches."""

    def __init__(self, owner: Path) -> None:
        self._owner = owner
        self._folder = owner / "batches"

    def add(self, endpoint: str, input_file_id: str, metadata: dict[str, str] | None) -> BatchFolder:
        """Note a batch; whoever locks it first runs it."""
        batch_id = new_id("batch_")
        beside = self._folder / f"{batch_id}.part"
        beside.mkdir(mode=0o700, parents=True)
        batch = Batch(
            id=batch_id, endpoint=endpoint, input_file_id=input_file_id, metadata=metadata, created_at=int(time.time())
        )
        BatchFolder(beside, self._owner).save(batch)
        beside.rename(self._folder / batch_id)
        flush_folder(self._folder)
        return self.get(batch_id)

    def get(self, batch_id: str) -> BatchFolder:
        """Return a batch.

        Raises:
            NoSuchBatch: there is none.
        """
        path = self._folder / batch_id
        if not is_id(batch_id) or not path.is_dir():
            raise NoSuchBatch(
                f"batch_id={batch_id[:80]!r} is not valid: there is no such batch.", field="batch_id", code="not_found"
            )
        return BatchFolder(path, self._owner)

    def newest_first(self) -> list[str]:
        """Return the ids of all batches."""
        return newest_first(self._folder)

    def open(self) -> list[BatchFolder]:
        """Return those that have not ended, the oldest first."""
        folders = [self.get(batch_id) for batch_id in reversed(self.newest_first())]
        return [folder for folder in folders if folder.load().is_open]
