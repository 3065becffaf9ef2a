"""Blocks of a device: what is copied when, over a device whose copies end late."""

from __future__ import annotations

import secrets

import numpy as np
import pytest

from baton.kvtransfer import wire
from baton.kvtransfer.device_memory import MIN_SLOTS, DeviceMemory
from baton.kvtransfer.imports import Fetched

from .blocks import BLOCK_NBYTES, TestTicket, block_hashes, request_id
from .late_copies import LateCopies, LateMark, random_blocks
from .test_transfer import Workers, assert_nothing_is_left, ends_of, offer_all, releases_of

FRAME_NBYTES = 4 * BLOCK_NBYTES
NEVER = 1 << 60


def small_memory(copies: LateCopies) -> DeviceMemory:
    """Make a memory with the fewest slots, of four blocks each."""
    return DeviceMemory(copies, frame_nbytes=FRAME_NBYTES, ring_nbytes=1)


def views(blocks: np.ndarray) -> list[memoryview]:
    return [memoryview(bytes(block)) for block in blocks]


def test_staged_blocks_are_read_when_their_copy_has_ended() -> None:
    copies = LateCopies(random_blocks(9, BLOCK_NBYTES, 1), patience=NEVER)
    stage = small_memory(copies).stage([7, 2, 3])
    assert stage is not None
    assert not stage.is_ready()
    copies.work()
    assert stage.is_ready()
    assert b"".join(stage.read()[1]) == copies.bytes[[7, 2, 3]].tobytes()


def test_no_more_is_staged_than_there_are_slots_until_one_is_released() -> None:
    memory = small_memory(LateCopies(random_blocks(9, BLOCK_NBYTES, 1)))
    stages = [memory.stage([at]) for at in range(MIN_SLOTS)]
    assert memory.stage([8]) is None
    assert stages[1] is not None
    stages[1].release()
    assert memory.stage([8]) is not None
    assert memory.stage([8]) is None


def test_landed_blocks_are_as_they_came_whatever_becomes_of_the_frames() -> None:
    copies = LateCopies(np.zeros((40, BLOCK_NBYTES), dtype=np.uint8), patience=NEVER)
    memory = small_memory(copies)
    content = random_blocks(10, BLOCK_NBYTES, 2)
    order = np.random.default_rng(3).permutation(40)[:10].tolist()
    frames = [bytearray(block) for block in content]
    landing = memory.land(order, [memoryview(frame) for frame in frames])
    assert landing.checksums == b"".join(map(wire.checksum, views(content)))
    for frame in frames:
        frame[:] = bytes(len(frame))
    assert not landing.is_ready()
    copies.work()
    assert landing.is_ready()
    assert (copies.bytes[order] == content).all()


def test_a_full_ring_waits_for_the_oldest_copy_and_loses_nothing() -> None:
    num_blocks = 12 * MIN_SLOTS
    copies = LateCopies(np.zeros((num_blocks, BLOCK_NBYTES), dtype=np.uint8), patience=NEVER)
    memory = small_memory(copies)
    content = random_blocks(num_blocks, BLOCK_NBYTES, 4)
    landings = [memory.land(range(at, at + 2), views(content[at : at + 2])) for at in range(0, num_blocks, 2)]
    copies.work()
    assert all(landing.is_ready() for landing in landings)
    assert (copies.bytes == content).all()


def test_nothing_lands_before_what_the_engine_had_started_has_ended() -> None:
    copies = LateCopies(np.zeros((8, BLOCK_NBYTES), dtype=np.uint8))
    memory = small_memory(copies)
    content = random_blocks(2, BLOCK_NBYTES, 5)
    step = copies.engine = LateMark()
    memory.expect([3])
    copies.engine = LateMark()  # of a later step, which does not know block 3
    landing = memory.land([3], views(content[:1]))
    copies.work()
    assert not landing.is_ready()
    assert not copies.bytes.any()
    step.reached = True
    copies.work()
    assert landing.is_ready()
    again = memory.land([3], views(content[1:]))  # nothing to wait for: nobody else had the block meanwhile
    copies.work()
    assert again.is_ready()
    assert (copies.bytes[3] == content[1]).all()


@pytest.mark.parametrize("block_nbytes", [BLOCK_NBYTES, 96 << 10], ids=["many a slot", "one a slot"])
def test_devices_exchange_blocks_over_sockets(block_nbytes: int) -> None:
    workers = Workers("ipc")
    num, each = 16, 9
    theirs = LateCopies(random_blocks(num * each, block_nbytes, 6))
    ours = LateCopies(np.zeros_like(theirs.bytes))
    exporter, importer = (
        make(DeviceMemory(copies, frame_nbytes=64 << 10, ring_nbytes=1))
        for make, copies in ((workers.exporter, theirs), (workers.importer, ours))
    )
    order = np.random.default_rng(7).permutation(num * each).tolist()
    try:
        for number in range(num):
            ticket = TestTicket(request_id(number), secret=secrets.token_bytes(16), source=exporter.endpoint)
            importer.fetch(ticket, 0, block_hashes(number, each), order[number * each : (number + 1) * each])
            offer_all(exporter, ticket, number, list(range(number * each, (number + 1) * each)))
        for end in ends_of(importer, num):
            assert isinstance(end, Fetched), end
        assert {released.reason for released in releases_of(exporter, num)} == {"fetched"}
        assert_nothing_is_left(exporter, importer)
    finally:
        workers.stop()
    assert (ours.bytes[order] == theirs.bytes).all()
