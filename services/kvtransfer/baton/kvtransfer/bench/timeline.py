"""Where the milliseconds of one transfer go: a memory that notes when the protocol turns to it, for the benchmark."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from baton.kvtransfer.memory import BlockMemory, Landing, PeerMemory, Stage

STATIONS = ("asked", "staging", "staged", "doorbell", "taken", "landed", "verified", "done")
"""asked: the engine's thread asks. staging: the exporter begins with the first blocks; staged: they may be read, or the
peer may be told where they lie. doorbell: the first message's blocks come to the importer's memory; taken: the last ones'
copies are started. landed: nothing writes any more; verified: the last sums are compared; done: the engine's thread knows."""


@dataclass(slots=True)
class Timeline:
    """Times by the host's monotonic clock, which all of its processes share."""

    times: dict[str, float] = field(default_factory=dict)
    in_memory_s: float = 0.0
    """Spent in calls of the memory, which start copies and sums, and make them where there is no device."""

    def clear(self) -> None:
        """Begin anew."""
        self.times.clear()
        self.in_memory_s = 0.0

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count a call of the memory."""
        started_at = time.monotonic()
        yield
        self.in_memory_s += time.monotonic() - started_at

    def first(self, station: str) -> None:
        """Note the first time that this is reached."""
        self.times.setdefault(station, time.monotonic())

    def last(self, station: str) -> None:
        """Note the last one."""
        self.times[station] = time.monotonic()

    def milliseconds(self) -> dict[str, float]:
        """Return the stations that were reached, in order, from `asked` on."""
        return {name: 1000 * (self.times[name] - self.times["asked"]) for name in STATIONS if name in self.times}


class TimedMemory:
    """A memory that notes its stations in `timeline`, and does all else as `memory` does."""

    def __init__(self, memory: BlockMemory) -> None:
        self.memory = memory
        self.timeline = Timeline()
        self.num_blocks = memory.num_blocks
        self.block_nbytes = memory.block_nbytes
        self.place_nbytes = memory.place_nbytes
        self.ring_nbytes = memory.ring_nbytes

    def expect(self, block_ids: Sequence[int]) -> None:
        """Pass it on."""
        self.memory.expect(block_ids)

    def stage(self, block_ids: Sequence[int]) -> Stage | None:
        """Note when the first begins."""
        self.timeline.first("staging")
        with self.timeline.call():
            stage = self.memory.stage(block_ids)
        return None if stage is None else _TimedStage(stage, self.timeline)

    def stage_in_place(self, block_ids: Sequence[int]) -> Stage:
        """Note when the first begins."""
        self.timeline.first("staging")
        with self.timeline.call():
            stage = self.memory.stage_in_place(block_ids)
        return _TimedStage(stage, self.timeline)

    def stage_in_ring(self, block_ids: Sequence[int]) -> Stage | None:
        """Note when the first begins."""
        self.timeline.first("staging")
        with self.timeline.call():
            stage = self.memory.stage_in_ring(block_ids)
        return None if stage is None else _TimedStage(stage, self.timeline)

    def land(self, block_ids: Sequence[int], blocks: Sequence[memoryview]) -> Landing:
        """Note when the first begins, and when the last is taken over."""
        self.timeline.first("doorbell")
        with self.timeline.call():
            landing = self.memory.land(block_ids, blocks)
        return self._timed(landing)

    def land_from(self, peer: PeerMemory, places: Sequence[int], block_ids: Sequence[int]) -> Landing:
        """Note when the first begins, and when the last is taken over."""
        self.timeline.first("doorbell")
        with self.timeline.call():
            landing = self.memory.land_from(peer, places, block_ids)
        return self._timed(landing)

    def _timed(self, landing: Landing) -> Landing:
        self.timeline.last("taken")

        def is_ready() -> bool:
            is_there = landing.is_ready()
            if is_there:
                self.timeline.last("landed")
            return is_there

        def checksums() -> bytes:
            sums = landing.checksums()
            self.timeline.last("verified")
            return sums

        return Landing(checksums, is_ready)


class _TimedStage(Stage):
    def __init__(self, stage: Stage, timeline: Timeline) -> None:
        super().__init__((), 0)
        self.places = stage.places
        self._stage = stage
        self._timeline = timeline

    def is_ready(self) -> bool:
        return self._stage.is_ready()

    def read(self) -> tuple[bytes, Sequence[memoryview]]:
        self._timeline.first("staged")
        with self._timeline.call():
            return self._stage.read()

    def release(self) -> None:
        self._stage.release()
