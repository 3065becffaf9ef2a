"""Copies between KV blocks and slots of host memory: on a CPU done when asked for, on a GPU on streams of their own.

On a GPU each block is summed where it lies, before it leaves and after it has come back: the host never reads the bytes,
and what may damage them on the way, memory and links, lies between the two sums. Copy engines move the bytes, so that the step that
runs meanwhile keeps the processors; many copies are started in one call, as the engine's thread does it between steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from xxhash import xxh3_128_digest

from baton.cuda_driver import Copier, Numbers, run_addresses
from baton.engine.pinned_memory import Pinned
from baton.host_tier import Copy, SlotCopies
from baton.kernels.block_sum import PARTS, block_sums

SUM_NBYTES = 16
PIECE_BLOCKS = 32
"""Of which the end is known apart: what comes back into blocks that leave follows them piece by piece, so that the link
carries both ways at once."""


def slot_copies(kv: Callable[[], Tensor], memory: memoryview) -> SlotCopies:
    """Divide `memory` into slots, and copy between them and the blocks of `kv()` [num_blocks, ...].

    `kv` is asked each time: on a CPU the tensor moves once before the first step. `memory` is writable and begins at a
    page; what is left behind the last whole slot is not used. It may be shared with other processes.
    """
    device = kv().device
    return _CudaCopies(kv(), memory) if device.type == "cuda" else _PlainCopies(kv, memory)


class _Copied:
    """A copy that is done."""

    def __init__(self, sums: list[bytes]) -> None:
        self._sums = sums

    def is_done(self) -> bool:
        return True

    def sums(self) -> list[bytes]:
        return self._sums


class _PlainCopies:
    def __init__(self, kv: Callable[[], Tensor], memory: memoryview) -> None:
        self._kv = kv
        nbytes = self._blocks().shape[1]
        self.num_slots = len(memory) // nbytes
        self._slots = torch.frombuffer(memory, dtype=torch.uint8, count=self.num_slots * nbytes).view(-1, nbytes)

    def save(self, block_ids: Sequence[int], slots: Sequence[int]) -> Copy:
        blocks = self._blocks()
        sums = []
        for block_id, slot in zip(block_ids, slots, strict=True):
            sums.append(_sum(blocks[block_id]))
            self._slots[slot] = blocks[block_id]
        return _Copied(sums)

    def load(self, slots: Sequence[int], block_ids: Sequence[int]) -> Copy:
        blocks = self._blocks()
        sums = []
        for slot, block_id in zip(slots, block_ids, strict=True):
            blocks[block_id] = self._slots[slot]
            sums.append(_sum(blocks[block_id]))
        return _Copied(sums)

    def guard(self, block_ids: Sequence[int]) -> None:
        """Do nothing: no copy runs on."""

    def close(self) -> None:
        """Do nothing: the memory goes with its last view."""

    def _blocks(self) -> Tensor:
        return _bytes_of(self._kv())


class _CudaCopies:
    def __init__(self, kv: Tensor, memory: memoryview) -> None:
        self._blocks = _bytes_of(kv)
        self._device = kv.device
        self._copier = Copier()
        self._pinned = Pinned(memory, self._blocks.shape[1], kv.device)
        # Two: what comes back does not queue behind what leaves, and the link carries both at once.
        self._out = torch.cuda.Stream(kv.device)  # type: ignore[no-untyped-call]
        self._in = torch.cuda.Stream(kv.device)  # type: ignore[no-untyped-call]
        self._saving: deque[tuple[torch.cuda.Event, Sequence[int], Sequence[int]]] = deque()
        self._reader_of: dict[int, torch.cuda.Event] = {}
        """Of a block that is saved: the end of that."""
        self._writer_of: dict[int, torch.cuda.Event] = {}
        """Of a slot, likewise."""
        _Running(self._out, self._summed([0])).wait()  # the kernel is compiled now, not in the first step that needs it

    @property
    def num_slots(self) -> int:
        return self._pinned.num_slots

    def save(self, block_ids: Sequence[int], slots: Sequence[int]) -> Copy:
        with torch.cuda.stream(self._out):
            sums = self._summed(block_ids)
            for at in range(0, len(slots), PIECE_BLOCKS):
                self._save_piece(slots[at : at + PIECE_BLOCKS], block_ids[at : at + PIECE_BLOCKS])
            return _Running(self._out, sums)

    def load(self, slots: Sequence[int], block_ids: Sequence[int]) -> Copy:
        with torch.cuda.stream(self._in):
            for at in range(0, len(slots), PIECE_BLOCKS):
                self._load_piece(slots[at : at + PIECE_BLOCKS], block_ids[at : at + PIECE_BLOCKS])
            return _Running(self._in, self._summed(block_ids))

    def guard(self, block_ids: Sequence[int]) -> None:
        """Have the calling thread's stream, on which steps are launched, wait for the saves of these blocks."""
        self._forget_ended()
        _wait(torch.cuda.current_stream(self._device), map(self._reader_of.get, block_ids))

    def close(self) -> None:
        self._out.synchronize()
        self._in.synchronize()
        self._pinned.close()

    def _summed(self, block_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Start summing blocks on the current stream; return the sums and what must be kept until they are there."""
        ids = torch.tensor(block_ids, dtype=torch.int32).pin_memory()
        sums = torch.empty((len(block_ids), PARTS, SUM_NBYTES // 8), dtype=torch.int64, pin_memory=True)
        block_sums(self._blocks, ids, sums)
        return sums, ids

    def _save_piece(self, slots: Sequence[int], block_ids: Sequence[int]) -> None:
        in_slots, in_blocks, sizes = self._addresses(slots, block_ids)
        self._copier.start(in_slots, in_blocks, sizes, self._out.cuda_stream)
        end = _record(self._out)
        self._forget_ended()
        self._saving.append((end, block_ids, slots))
        self._reader_of.update(dict.fromkeys(block_ids, end))
        self._writer_of.update(dict.fromkeys(slots, end))

    def _load_piece(self, slots: Sequence[int], block_ids: Sequence[int]) -> None:
        _wait(self._in, [*map(self._reader_of.get, block_ids), *map(self._writer_of.get, slots)])
        in_slots, in_blocks, sizes = self._addresses(slots, block_ids)
        self._copier.start(in_blocks, in_slots, sizes, self._in.cuda_stream)

    def _addresses(self, slots: Sequence[int], block_ids: Sequence[int]) -> tuple[Numbers, Numbers, Numbers]:
        """Return the addresses of slots and of blocks, and sizes, of as few copies as can be."""
        runs, pinned = self._pinned.runs(slots, block_ids), self._pinned.slots
        return run_addresses(runs, self._blocks.shape[1], pinned.data_ptr(), self._blocks.data_ptr())

    def _forget_ended(self) -> None:
        while self._saving and _is_over(self._saving[0][0]):
            end, block_ids, slots = self._saving.popleft()
            for known, keys in ((self._reader_of, block_ids), (self._writer_of, slots)):
                for key in keys:
                    if known.get(key) is end:
                        del known[key]


class _Running:
    """What was started on a stream until now, on its way."""

    def __init__(self, stream: torch.cuda.Stream, sums: tuple[Tensor, Tensor]) -> None:
        self.end = _record(stream)
        self._sums = sums

    def is_done(self) -> bool:
        return _is_over(self.end)

    def wait(self) -> None:
        self.end.synchronize()

    def sums(self) -> list[bytes]:
        read = self._sums[0].numpy().sum(axis=1).tobytes()  # of the parts; what overflows is dropped, as it should be
        return [read[at : at + SUM_NBYTES] for at in range(0, len(read), SUM_NBYTES)]


def _record(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(stream)
    return event


def _is_over(end: torch.cuda.Event) -> bool:
    return bool(end.query())  # type: ignore[no-untyped-call]


def _wait(stream: torch.cuda.Stream, ends: Iterable[torch.cuda.Event | None]) -> None:
    for end in dict.fromkeys(ends):
        if end is not None:
            stream.wait_event(end)


def _bytes_of(kv: Tensor) -> Tensor:
    """View the blocks as bytes: [num_blocks, block bytes]."""
    return kv.view(len(kv), -1).view(torch.uint8)


def _sum(block: Tensor) -> bytes:
    return xxh3_128_digest(block.numpy().data)
