"""Tensors out of safetensors files, straight into parameters.

A tensor goes from the file into its parameter where device, dtype and layout allow it, and otherwise through
a small staging buffer (two, pinned, for a GPU, so that reading overlaps copying). No more than the parameters
and that buffer is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from torch import Tensor

from baton.errors import ModelLoadError
from baton.models.checkpoint import FETCH_AGAIN, TensorEntry

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# For a GPU long enough to hide the latency of a copy; for a CPU short enough that a transposed copy stays in
# the cache (2 GB/s, where whole matrices reach 0.5).
STAGING_NBYTES = {"cuda": 32 << 20, "cpu": 1 << 20}


@contextmanager
def progress_bar(total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """Draw a bar on stderr while weights are read; gives the function that moves it by bytes."""
    columns = (TextColumn("Loading weights"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("", total=total)
        yield lambda nbytes: bar.advance(task, nbytes)


class TensorReader:
    """Read tensors for one device; reports the bytes as they come."""

    def __init__(self, device: torch.device, advance: Callable[[int], None]) -> None:
        self._device = device
        self._staging_nbytes = STAGING_NBYTES[device.type]
        self._advance = advance
        self._buffers: list[Tensor] = []
        self._copied: list[torch.cuda.Event] = []  # a buffer of a GPU's: when its last copy is done
        self._turn = 0

    def read(self, stream: FileIO, entry: TensorEntry, target: Tensor) -> None:
        """Read a tensor into `target`, which has its shape."""
        if target.device.type == "cpu" and target.dtype == DTYPES[entry.dtype] and target.is_contiguous():
            _fill(stream, entry, entry.offset, target.view(-1).view(torch.uint8))
            self._advance(entry.nbytes)
            return
        for first, rows in self._chunks(stream, entry):
            # Moved first, so that a cast happens on the device.
            _copy(rows.to(self._device, non_blocking=True), target[first : first + len(rows)])
            if self._copied:
                self._copied[self._turn].record(torch.cuda.current_stream(self._device))
            self._advance(rows.nbytes)

    def equals(self, stream: FileIO, entry: TensorEntry, target: Tensor) -> bool:
        """Say whether a tensor, in the dtype of `target`, is what `target` holds."""
        same = True
        for first, rows in self._chunks(stream, entry):
            there = rows.to(self._device).to(target.dtype)
            same = same and torch.equal(there, target[first : first + len(rows)])
            self._advance(rows.nbytes)
        return same

    def finish(self) -> None:
        """Wait until every parameter has its values."""
        for event in self._copied:
            event.synchronize()

    def _chunks(self, stream: FileIO, entry: TensorEntry) -> Iterator[tuple[int, Tensor]]:
        """Read a tensor by as many rows as the staging buffer holds; gives (first row, rows)."""
        if not entry.nbytes:
            return
        num_rows, row_nbytes = entry.shape[0], entry.nbytes // entry.shape[0]
        step = max(1, self._staging_nbytes // row_nbytes)
        for first in range(0, num_rows, step):
            count = min(step, num_rows - first)
            buffer = self._take(count * row_nbytes)
            _fill(stream, entry, entry.offset + first * row_nbytes, buffer)
            yield first, buffer.view(DTYPES[entry.dtype]).view(count, *entry.shape[1:])

    def _take(self, nbytes: int) -> Tensor:
        """Give a buffer whose last copy is done, [nbytes] uint8."""
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


def _fill(stream: FileIO, entry: TensorEntry, offset: int, buffer: Tensor) -> None:
    """Read bytes of a tensor from a place of its file until the buffer, uint8 in host memory, is full."""
    stream.seek(offset)
    left = memoryview(buffer.numpy().data)
    while left:
        count = stream.readinto(left)
        if not count:
            raise ModelLoadError(f"{entry.file} ends within tensor {entry.name!r}. {FETCH_AGAIN}")
        left = left[count:]
