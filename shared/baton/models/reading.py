"""Tensors, or this rank's parts of them, out of safetensors files, straight into parameters.

A part goes from the file into its parameter where device, dtype and layout allow it, and otherwise through a small
staging buffer (two, pinned, for a GPU, so that reading overlaps copying). Only its own bytes are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from torch import Tensor

from baton.errors import ModelLoadError
from baton.models.checkpoint import FETCH_AGAIN, TensorEntry
from baton.models.parameters import Piece

# For a GPU long enough to hide the latency of a copy; for a CPU short enough that a transposed copy stays in
# the cache (2 GB/s, where whole matrices reach 0.5).
STAGING_NBYTES = {"cuda": 32 << 20, "cpu": 1 << 20}


@contextmanager
def progress_bar(total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """Draw a bar on stderr while weights are read; yields the function that moves it by bytes."""
    columns = (TextColumn("Loading weights"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("", total=total)
        yield lambda nbytes: bar.advance(task, nbytes)


class TensorReader:
    """Reads tensors for one device; reports the bytes as they come."""

    def __init__(self, device: torch.device, advance: Callable[[int], None]) -> None:
        self._device = device
        self._staging_nbytes = STAGING_NBYTES[device.type]
        self._advance = advance
        self._buffers: list[Tensor] = []
        self._copied: list[torch.cuda.Event] = []  # of a GPU's buffer: when its last copy is done
        self._turn = 0

    def read(self, stream: FileIO, entry: TensorEntry, piece: Piece) -> None:
        """Read the part of a tensor that a piece holds."""
        target = piece.tensor
        if target.device.type == "cpu" and target.dtype == entry.dtype and target.is_contiguous():
            _fill(stream, entry, piece.rows, piece.columns, target.view(-1).view(torch.uint8))
            self._advance(target.nbytes)
            return
        for first, rows in self._chunks(stream, entry, piece):
            # Moved first, so that a cast happens on the device.
            _copy(rows.to(self._device, non_blocking=True), target[first : first + len(rows)])
            if self._copied:
                self._copied[self._turn].record(torch.cuda.current_stream(self._device))
            self._advance(rows.nbytes)

    def equals(self, stream: FileIO, entry: TensorEntry, piece: Piece) -> bool:
        """Say whether a piece holds its part of a tensor already, in its own dtype."""
        same = True
        for first, rows in self._chunks(stream, entry, piece):
            there = rows.to(self._device).to(piece.tensor.dtype)
            same = same and torch.equal(there, piece.tensor[first : first + len(rows)])
            self._advance(rows.nbytes)
        return same

    def finish(self) -> None:
        """Wait until every parameter has its values."""
        for event in self._copied:
            event.synchronize()

    def _chunks(self, stream: FileIO, entry: TensorEntry, piece: Piece) -> Iterator[tuple[int, Tensor]]:
        """Read a piece by as many rows as the staging buffer holds; yields (first row of the piece, rows)."""
        width = len(piece.columns) * entry.dtype.itemsize
        if not width:
            return
        step = max(1, self._staging_nbytes // width)
        for first in range(0, len(piece.rows), step):
            rows = piece.rows[first : first + step]
            buffer = self._take(len(rows) * width)
            _fill(stream, entry, rows, piece.columns, buffer)
            yield first, buffer.view(entry.dtype).view(len(rows), *piece.tensor.shape[1:])

    def _take(self, nbytes: int) -> Tensor:
        """Find a buffer whose last copy is done, [nbytes] uint8."""
        on_gpu = self._device.type == "cuda"
        if not self._buffers or len(self._buffers[0]) < nbytes:
            self.finish()
            size = max(nbytes, self._staging_nbytes)
            self._buffers = [torch.empty(size, dtype=torch.uint8, pin_memory=on_gpu) for _ in range(2 if on_gpu else 1)]
            if on_gpu:
                self._copied = [torch.cuda.Event(), torch.cuda.Event()]  # type: ignore[no-untyped-call]
        self._turn = (self._turn + 1) % len(self._buffers)
        if on_gpu:
            self._copied[self._turn].synchronize()
        return self._buffers[self._turn][:nbytes]


def _copy(rows: Tensor, target: Tensor) -> None:
    if rows.dim() == 2 and target.stride(0) == 1:
        # Transposed beforehand: on a CPU a copy between two orders of dimensions is several times slower.
        target.t().copy_(rows.t().contiguous())
    else:
        target.copy_(rows)


def _fill(stream: FileIO, entry: TensorEntry, rows: range, columns: range, buffer: Tensor) -> None:
    """Read a part of a tensor into a buffer of its size, uint8 in host memory."""
    num_columns = math.prod(entry.shape[1:])
    width = len(columns) * entry.dtype.itemsize
    offset = entry.offset + (rows.start * num_columns + columns.start) * entry.dtype.itemsize
    memory = memoryview(buffer.numpy().data)
    if len(columns) == num_columns:  # rows without a gap between them
        return _read(stream, entry, offset, memory)
    for row in range(len(rows)):
        _read(stream, entry, offset + row * num_columns * entry.dtype.itemsize, memory[row * width :][:width])
    return None


def _read(stream: FileIO, entry: TensorEntry, offset: int, memory: memoryview) -> None:
    stream.seek(offset)
    while memory:
        count = stream.readinto(memory)
        if not count:
            raise ModelLoadError(f"{entry.file} ends within tensor {entry.name!r}. {FETCH_AGAIN}")
        memory = memory[count:]
