"""Results: the answers of a batch as they come, on disk before they count."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from baton.router.batches.data_dir import DataDirFull, refusing
from baton.router.batches.lines import number_of


@dataclass(frozen=True, slots=True)
class _Waiting:
    number: int
    line: bytes
    failed: bool
    done: asyncio.Future[None]


class Results:
    """Two files that only grow. What a crash has torn is cut off; what is whole is never asked for again."""

    def __init__(self, folder: Path) -> None:
        """Open both, and find what they hold already."""
        self.completed: set[int] = set()
        """Numbers of the lines that have an answer."""
        self.failed: set[int] = set()
        """Numbers of the lines that have an error."""
        self._files = [_open(folder / "output.jsonl", self.completed), _open(folder / "errors.jsonl", self.failed)]
        self._waiting: list[_Waiting] = []
        self._writer: asyncio.Task[None] | None = None

    async def add(self, number: int, line: bytes, *, failed: bool) -> None:
        """Write a line; return when it is on disk, together with what others have brought meanwhile.

        Raises:
            DataDirFull: the disk takes no more.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(number, line, failed, loop.create_future())
        self._waiting.append(waiting)
        if self._writer is None:
            self._writer = loop.create_task(self._write_all())
        await asyncio.shield(waiting.done)

    async def close(self) -> None:
        """Write what waits, and let go of the files."""
        if self._writer is not None:
            await self._writer
        for fd in self._files:
            os.close(fd)

    async def _write_all(self) -> None:
        while self._waiting:
            some, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._write, some)
            except DataDirFull as error:
                for each in some:
                    each.done.set_exception(error)
                    each.done.exception()  # whoever waited for it may have left
            else:
                for each in some:
                    (self.failed if each.failed else self.completed).add(each.number)
                    each.done.set_result(None)
        self._writer = None

    def _write(self, some: list[_Waiting]) -> None:
        with refusing():
            for failed, fd in enumerate(self._files):
                if text := b"".join(each.line for each in some if each.failed == bool(failed)):
                    at = os.fstat(fd).st_size
                    try:
                        while text:
                            text = text[os.write(fd, text) :]
                        os.fsync(fd)
                    except OSError:
                        os.ftruncate(fd, at)
                        raise


def _open(file: Path, numbers: set[int]) -> int:
    """Open a file to append to, after its last whole line; note whose lines it has."""
    whole = 0
    if file.exists():
        with open(file, "rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                numbers.add(number_of(line))
                whole += len(line)
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.ftruncate(fd, whole)
    return fd
