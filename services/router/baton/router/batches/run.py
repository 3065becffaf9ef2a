"""BatchRun: one batch from its first line to its last, by the router that has locked it.

A line is done when its answer is on disk. Whatever ends the router, the next one that locks the batch begins with the
lines that are not done.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import islice

import orjson

from baton.logs import get_logger
from baton.router.batches.batch import Batch, BatchError, BatchFolder, Counts, State
from baton.router.batches.data_dir import DataDirFull
from baton.router.batches.files import Files, NoSuchFile
from baton.router.batches.lines import BrokenLine, Line, answer_line, error_line, read_line, read_numbered
from baton.router.batches.results import Results
from baton.router.inside import InnerAnswer

Ask = Callable[[str, bytes, str], Awaitable[InnerAnswer]]
"""Send a body to a route, under a request id; waits for a turn."""
_TICK_S = 0.5
_READ_AT_ONCE = 64
_LATER = (429, 503, 504)
"""What is answered while the workers are busy or away: the line is asked again."""
_RETRY_S = (1.0, 30.0)
_AGAIN_S = 10.0
"""Until a batch is tried again for which the disk had no room, or which met a mistake of ours."""
_log = get_logger("batches")


class BatchRun:
    """Answers the lines of one batch, as many at once as its turns allow."""

    def __init__(self, folder: BatchFolder, ask: Ask, *, max_lines: int, max_line_nbytes: int, at_once: int) -> None:
        """Take a batch that is locked; `run` unlocks it."""
        self._folder = folder
        self._files = Files(folder.owner)
        self._ask = ask
        self._max_lines, self._max_line_nbytes, self._at_once = max_lines, max_line_nbytes, at_once
        self._lines: set[asyncio.Task[None]] = set()
        self._broken: DataDirFull | None = None

    async def run(self) -> None:
        """Bring the batch to its end; when cancelled, leave it to whoever comes next."""
        try:
            batch = await asyncio.to_thread(self._folder.load)
            if batch.is_open:
                await self._run(batch)
        except DataDirFull as error:  # it stays open, and is tried again
            _log.error("batch_stopped", batch=self._folder.path.name, reason=str(error))
            await asyncio.sleep(_AGAIN_S)
        except Exception:  # the edge: the batch stays open, and the others go on
            _log.exception("batch_failed", batch=self._folder.path.name)
            await asyncio.sleep(_AGAIN_S)
        finally:
            self._folder.unlock()

    async def _run(self, batch: Batch) -> None:
        if batch.state == "validating":
            if error := await asyncio.to_thread(self._validate, batch):
                batch.errors = [error]
                batch.enter("failed")
                await asyncio.to_thread(self._folder.save, batch)
                return
            batch.enter("in_progress")
            await asyncio.to_thread(self._folder.save, batch)
        if batch.state == "in_progress":
            _log.info("batch_runs", batch=batch.id, lines=batch.counts.total)
            batch.ending = await self._answer(batch)
            batch.enter("finalizing")
            await asyncio.to_thread(self._folder.save, batch)
        await asyncio.to_thread(self._finish, batch)
        _log.info("batch_ended", batch=batch.id, state=batch.state, failed=batch.counts.failed)

    def _validate(self, batch: Batch) -> BatchError | None:
        """Count the lines; return what is wrong with all of them together."""
        try:
            lines = self._numbered(batch)
        except NoSuchFile as error:
            return BatchError("input_file_gone", str(error), "input_file_id")
        batch.counts.total = total = sum(1 for _ in lines)
        if not total:
            return BatchError("empty_file", "The input file has no lines.", "input_file_id")
        if total > self._max_lines:
            message = f"The input file has {total} lines; at most {self._max_lines} are taken. Split it."
            return BatchError("too_many_lines", message, "input_file_id")
        return None

    def _numbered(self, batch: Batch) -> Iterator[tuple[int, bytes]]:
        return read_numbered(self._files.content(batch.input_file_id), self._max_line_nbytes)

    # -- the lines ----------------------------------------------------------------------------------------

    async def _answer(self, batch: Batch) -> State:
        """Answer what is not answered yet; return how it ended."""
        results = await asyncio.to_thread(Results, self._folder.path)
        answering = asyncio.create_task(self._answer_all(batch, results))
        try:
            ending: State | None = None
            while not answering.done() and ending is None:
                await asyncio.wait((answering,), timeout=_TICK_S)
                ending = await asyncio.to_thread(self._tick, batch, results)
            if not answering.done():
                await self._stop(answering)
                if ending == "expired":
                    await self._give_up(batch, results)
                return ending or "completed"
            answering.result()
            return "completed"
        finally:
            await self._stop(answering)
            await results.close()
            batch.counts = _counts(batch, results)

    def _tick(self, batch: Batch, results: Results) -> State | None:
        """Note how far it is; return why to stop."""
        counts = _counts(batch, results)
        if counts != batch.counts:
            batch.counts = counts
            self._folder.save(batch)
        if self._folder.cancelling_at is not None:
            return "cancelled"
        return "expired" if time.time() >= batch.expires_at else None

    async def _stop(self, answering: asyncio.Task[None]) -> None:
        tasks = (answering, *self._lines)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer_all(self, batch: Batch, results: Results) -> None:
        async for number, raw in self._left(batch, results):
            while len(self._lines) >= self._at_once:
                await asyncio.wait(self._lines, return_when=asyncio.FIRST_COMPLETED)
            if self._broken is not None:
                raise self._broken
            if isinstance(raw, BrokenLine):
                line = error_line(batch.id, number, raw.custom_id, raw.code, str(raw))
                await results.add(number, line, failed=True)
                continue
            task = asyncio.create_task(self._answer_one(batch, raw, results))
            self._lines.add(task)
            task.add_done_callback(self._lines.discard)
        while self._lines:
            await asyncio.wait(self._lines)
        if self._broken is not None:
            raise self._broken

    async def _left(self, batch: Batch, results: Results) -> AsyncIterator[tuple[int, Line | BrokenLine]]:
        """Give each line that is not done, read or broken."""
        lines, seen = self._numbered(batch), set[str]()
        while some := await asyncio.to_thread(lambda: list(islice(lines, _READ_AT_ONCE))):
            for number, raw in some:
                found: Line | BrokenLine
                try:
                    found = read_line(number, raw, batch.endpoint, seen, self._max_line_nbytes)
                except BrokenLine as broken:
                    found = broken
                if number not in results.completed and number not in results.failed:
                    yield number, found

    async def _answer_one(self, batch: Batch, line: Line, results: Results) -> None:
        body = orjson.dumps(line.body)
        while True:
            request_id = uuid.uuid4().hex
            answer = await self._ask(batch.endpoint, body, request_id)
            if answer.status not in _LATER:
                break
            await asyncio.sleep(min(max(answer.retry_after_s, _RETRY_S[0]), _RETRY_S[1]))
        text = answer_line(batch.id, line, answer.status, request_id, answer.body)
        try:
            await results.add(line.number, text, failed=answer.status != 200)
        except DataDirFull as error:
            self._broken = error

    async def _give_up(self, batch: Batch, results: Results) -> None:
        """Say of each line that is left that its time is over."""
        async for number, line in self._left(batch, results):
            custom_id = line.custom_id
            text = error_line(
                batch.id, number, custom_id, "batch_expired", "The batch expired before this line's turn."
            )
            await results.add(number, text, failed=True)

    # -- the end ------------------------------------------------------------------------------------------

    def _finish(self, batch: Batch) -> None:
        """Make files of the results. What was done before a crash stays as it is."""
        names = ("output", "errors")
        found: list[str | None] = []
        for name, file_id in zip(names, batch.result_ids, strict=True):
            lines, place = self._folder.path / f"{name}.jsonl", self._folder.path / name
            if lines.exists() and lines.stat().st_size:
                place.mkdir(mode=0o700, exist_ok=True)
                with contextlib.suppress(FileExistsError):
                    os.link(lines, place / "content")
                self._files.adopt(place, file_id, f"{batch.id}_{name}.jsonl", "batch_output")
                found.append(file_id)
            else:
                found.append(None)
        batch.output_file_id, batch.error_file_id = found
        batch.enter(batch.ending)
        self._folder.save(batch)
        for name in names:
            (self._folder.path / f"{name}.jsonl").unlink(missing_ok=True)


def _counts(batch: Batch, results: Results) -> Counts:
    return Counts(batch.counts.total, len(results.completed), len(results.failed))
