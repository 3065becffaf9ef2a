"""Bytes of weight files into parameters, by many threads: read where they belong, or by way of a small buffer.

On a CPU a part that lies there as it is stored is read straight into the parameter. Everything else (another dtype or order,
every second row, a GPU) is read into a thread's own buffer first; a GPU's are pinned, two of them, so that one is read while
the other is copied. Files are not mapped: a file that shrinks is an error, not the end of the process, and the memory taken
is that of the parameters and buffers.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from baton.errors import ModelLoadError
from baton.models.checkpoint import FETCH_AGAIN, TensorEntry
from baton.models.parameters import Encoded, Piece

NUM_THREADS = min(16, os.cpu_count() or 1)
"""One thread copies 2 to 5 GB/s from the page cache; a disk has enough to do with the reads of 16."""
CHUNK_NBYTES = {"cuda": 8 << 20, "cpu": 1 << 20}
"""Of one read. For a GPU long enough to hide the latency of a copy; for a CPU short enough that what is copied once more
stays in the cache (transposed 2 GB/s, where whole matrices reach 0.5)."""
LEAST_NBYTES = 4096
"""Of a row's part that is read by itself; of less the whole row is read, and cut then."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a stored tensor, and the part of a parameter where they go."""

    entry: TensorEntry
    begin: int
    """Where the first one's row begins in the file."""
    shape: tuple[int, ...]
    """Of the rows in the file, from the first to the last."""
    box: tuple[slice, ...]
    """What of them is wanted."""
    target: Tensor
    encoded: Encoded | None = None
    """Where they go instead, of a weight that is encoded; `target` then has a shape alone."""

    @property
    def nbytes(self) -> int:
        """Bytes in the file that are wanted."""
        return self.target.numel() * self.entry.dtype.itemsize

    @property
    def is_whole(self) -> bool:
        """Whether all bytes from the first to the last are wanted."""
        return self.target.numel() == math.prod(self.shape)


def rows_of(entry: TensorEntry, piece: Piece) -> Iterator[Rows]:
    """Cut a piece into parts of at most a chunk, or of one row."""
    shape, box = entry.shape or (1,), piece.box or (range(1),)
    target = piece.tensor.view(tuple(map(len, box)))
    limit = CHUNK_NBYTES[target.device.type]
    if piece.encoded is None:
        yield from _cut(entry, entry.offset, shape, box, target, limit)
        return
    # A whole output is encoded at once: where outputs are columns, that is the whole matrix.
    limit, at = sys.maxsize if piece.encoded.is_transposed else limit, 0
    for rows in _cut(entry, entry.offset, shape, box, target, limit):
        yield replace(rows, encoded=piece.encoded.part(at, len(rows.target)))
        at += len(rows.target)


def _cut(
    entry: TensorEntry, begin: int, shape: tuple[int, ...], box: tuple[range, ...], target: Tensor, limit: int
) -> Iterator[Rows]:
    row_nbytes = math.prod(shape[1:]) * entry.dtype.itemsize
    if len(shape) > 2:  # experts: a matrix each
        for at, part in zip(box[0], target, strict=True):
            yield from _cut(entry, begin + at * row_nbytes, shape[1:], box[1:], part, limit)
        return
    count = max(1, limit // max(1, row_nbytes))
    inner = tuple(slice(of.start, of.stop, of.step) for of in box[1:])
    for at in range(0, len(box[0]), count):
        rows = box[0][at : at + count]
        cut = (slice(0, rows[-1] - rows[0] + 1, rows.step), *inner)
        stored = (rows[-1] - rows[0] + 1, *shape[1:])
        yield Rows(entry, begin + rows[0] * row_nbytes, stored, cut, target[at : at + count])


def read_all(
    parts: Iterable[Rows],
    use: Callable[[Tensor, Rows], None],
    advance: Callable[[int], object],
    *,
    always: bool = False,
) -> None:
    """Read parts with many threads; `use` takes what is not read straight to its place, on the target's device.

    Args:
        always: give all to `use`, and write nothing.

    Raises:
        ModelLoadError: a file cannot be read, or is shorter than its header says.
    """
    parts = list(parts)
    with ExitStack() as opened:
        files = {file: _open(file, opened) for file in dict.fromkeys(part.entry.file for part in parts)}
        # one core each: torch's own threads, in each of ours, would only wait for one another
        opened.callback(torch.set_num_threads, torch.get_num_threads())
        device = parts[0].target.device if parts else torch.device("cpu")
        pool = opened.enter_context(ThreadPoolExecutor(NUM_THREADS, "load", _begin, (device,)))
        opened.callback(pool.shutdown, cancel_futures=True)  # where one part fails, the others are left
        for nbytes in pool.map(_Reader(files, use, is_direct=not always, is_gpu=device.type == "cuda").read, parts):
            advance(nbytes)


def _begin(device: torch.device) -> None:
    """Prepare a thread."""
    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _open(file: Path, opened: ExitStack) -> int:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ModelLoadError(f"{file} cannot be read: {error.strerror}.") from None
    opened.callback(os.close, descriptor)
    return descriptor


class _Reader:
    """What the threads share: open files; and each one's own buffers."""

    def __init__(
        self, files: Mapping[Path, int], use: Callable[[Tensor, Rows], None], *, is_direct: bool, is_gpu: bool
    ) -> None:
        self._files, self._use, self._is_direct, self._is_gpu = files, use, is_direct, is_gpu
        self._own = threading.local()

    def read(self, rows: Rows) -> int:
        """Read a part to its place; return how many bytes it has."""
        target, dtype = rows.target, rows.entry.dtype
        is_as_stored = self._is_direct and target.dtype == dtype and rows.is_whole and target.is_contiguous()
        if is_as_stored and not self._is_gpu:
            self._fill(target.view(-1).view(torch.uint8), rows, rows.begin)
            return rows.nbytes
        buffer = self._buffer(rows)
        strip = rows.box[-1]
        width = len(range(*strip.indices(rows.shape[-1]))) * dtype.itemsize
        if len(rows.shape) == 2 and not rows.is_whole and strip.step in (None, 1) and width >= LEAST_NBYTES:
            stored = self._read_strips(buffer, rows, width)[rows.box[0]]
        else:
            nbytes = math.prod(rows.shape) * dtype.itemsize
            self._fill(buffer[:nbytes], rows, rows.begin)
            stored = buffer[:nbytes].view(dtype).view(rows.shape)
            stored = stored if self._is_gpu else stored[rows.box]
        if is_as_stored:
            target.copy_(stored, non_blocking=True)
        elif self._is_gpu:
            there = stored.to(target.device, non_blocking=True)
            self._use(there if there.shape == target.shape else there[rows.box], rows)
        else:
            self._use(stored, rows)
        if self._is_gpu:
            self._own.events[self._own.turn].record(torch.cuda.current_stream(target.device))
        return rows.nbytes

    def _read_strips(self, buffer: Tensor, rows: Rows, width: int) -> Tensor:
        """Read of each row its part alone."""
        row_nbytes = rows.shape[1] * rows.entry.dtype.itemsize
        first = rows.begin + (rows.box[1].start or 0) * rows.entry.dtype.itemsize
        for row in range(rows.shape[0]):
            self._fill(buffer[row * width : (row + 1) * width], rows, first + row * row_nbytes)
        return buffer[: rows.shape[0] * width].view(rows.entry.dtype).view(rows.shape[0], -1)

    def _fill(self, buffer: Tensor, rows: Rows, at: int) -> None:
        file = rows.entry.file
        view = memoryview(buffer.numpy())  # type: ignore[arg-type]
        done = 0
        try:
            while done < len(view):
                count = os.preadv(self._files[file], [view[done:]], at + done)
                if count == 0:
                    raise ModelLoadError(f"{file} is truncated: it ends in {rows.entry.name!r}. {FETCH_AGAIN}")
                done += count
        except OSError as error:
            raise ModelLoadError(f"{file} cannot be read: {error.strerror}.") from None

    def _buffer(self, rows: Rows) -> Tensor:
        """Return this thread's next buffer, free to be written."""
        own, device = self._own, rows.target.device
        size = max(CHUNK_NBYTES[device.type], math.prod(rows.shape) * rows.entry.dtype.itemsize)
        if not hasattr(own, "buffers"):
            own.turn, own.buffers, own.events = 0, [None, None], [None, None]
        own.turn = 1 - own.turn
        if own.events[own.turn] is not None:
            own.events[own.turn].synchronize()
        elif self._is_gpu:
            own.events[own.turn] = torch.cuda.Event()  # type: ignore[no-untyped-call]
        buffer: Tensor | None = own.buffers[own.turn]
        if buffer is None or len(buffer) < size:
            buffer = torch.empty(size, dtype=torch.uint8, pin_memory=self._is_gpu)
            own.buffers[own.turn] = buffer
        return buffer
