"""Blocks of a device: what is copied when, over a device whose copies end late."""

from __future__ import annotations

import os
import secrets
import subprocess
from typing import Any

import numpy as np
import pytest

from baton.errors import ConfigError
from baton.kvtransfer import wire
from baton.kvtransfer.device_memory import MIN_SLOTS, DeviceMemory
from baton.kvtransfer.exporter import Exporter
from baton.kvtransfer.importer import Importer
from baton.kvtransfer.imports import Fetched, FetchFailed
from baton.kvtransfer.memory import Bytes, PeerMemory
from baton.kvtransfer.transports.cuda_ipc import CudaIpcTransport
from baton.kvtransfer.transports.ipc import IpcTransport
from baton.kvtransfer.transports.shm_ring import ShmRingTransport

from .blocks import BLOCK_NBYTES, TestTicket, block_hashes, request_id, wait_until
from .late_copies import LateCopies, LateMark, random_blocks
from .test_transfer import CONFIG, HASTY, Workers, assert_nothing_is_left, ends_of, offer_all, releases_of

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
    assert landing.checksums() == b"".join(map(wire.checksum, views(content)))
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


def exchange(workers: Workers, exporter: Exporter, importer: Importer, num: int, each: int) -> list[int]:
    """Fetch `num` requests of `each` block, the first block of the exporter's first; return where they are to lie."""
    order: list[int] = np.random.default_rng(7).permutation(num * each).tolist()
    try:
        for number in range(num):
            span = slice(number * each, (number + 1) * each)
            ticket = TestTicket(request_id(number), secret=secrets.token_bytes(16), source=exporter.endpoint)
            importer.fetch(ticket, 0, block_hashes(number, each), order[span])
            offer_all(exporter, ticket, number, list(range(num * each))[span])
        for end in ends_of(importer, num):
            assert isinstance(end, Fetched), end
        assert {released.reason for released in releases_of(exporter, num)} == {"fetched"}
        assert_nothing_is_left(exporter, importer)
    finally:
        workers.stop()
    return order


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("block_nbytes", [BLOCK_NBYTES, 96 << 10], ids=["many a slot", "one a slot"])
def test_devices_exchange_blocks_over_sockets(block_nbytes: int, num_threads: int) -> None:
    workers, num, each = Workers("ipc"), 16, 9
    theirs = LateCopies(random_blocks(num * each, block_nbytes, 6))
    ours = LateCopies(np.zeros_like(theirs.bytes))
    exporter, importer = (
        make(DeviceMemory(copies, frame_nbytes=64 << 10, ring_nbytes=1, num_threads=num_threads))
        for make, copies in ((workers.exporter, theirs), (workers.importer, ours))
    )
    order = exchange(workers, exporter, importer, num, each)
    assert (ours.bytes[order] == theirs.bytes).all()


class InProcess:
    """A device's sharing between two memories of one process: a handle is an address."""

    def __init__(self, copies: LateCopies, *, in_reach: bool = True, rate: float = 1e12) -> None:
        self.nbytes = copies.bytes.nbytes
        self.address = copies.bytes.ctypes.data
        self.in_reach = in_reach
        self.rate = rate
        self.num_open = 0

    def export_memory(self) -> tuple[bytes, int]:
        return (self.address - 64).to_bytes(8, "big"), 64

    def open_memory(self, handle: bytes) -> int:
        if not self.in_reach:
            raise ConfigError("no way from one device to the other")
        self.num_open += 1
        return int.from_bytes(handle, "big")

    def close_memory(self, address: int) -> None:
        self.num_open -= 1

    def measure(self, address: int, nbytes: int) -> float:
        return self.rate

    def register(self, room: Bytes) -> None:
        if not self.in_reach:
            raise ConfigError("host memory cannot be pinned")
        self.num_open += 1

    def unregister(self, room: Bytes) -> None:
        self.num_open -= 1


@pytest.mark.parametrize(
    ("way", "is_read"),
    [({}, True), ({"in_reach": False}, False), ({"rate": 1e8}, False)],
    ids=["in reach", "out of reach", "slow"],
)
def test_a_device_reads_the_blocks_of_another_or_gets_them_over_sockets(way: dict[str, Any], is_read: bool) -> None:
    """300 blocks a request: more than one message says where they lie."""
    workers, num, each = Workers("ipc"), 6, 300
    theirs = LateCopies(random_blocks(num * each, 512, 8))
    ours = LateCopies(np.zeros_like(theirs.bytes))
    shared, mapped = InProcess(theirs), InProcess(ours, **way)
    exporter, importer = (
        make(
            DeviceMemory(copies, frame_nbytes=CONFIG.message_nbytes, ring_nbytes=1),
            transports=(CudaIpcTransport(device), IpcTransport()),
        )
        for make, copies, device in ((workers.exporter, theirs, shared), (workers.importer, ours, mapped))
    )
    order = exchange(workers, exporter, importer, num, each)
    assert (ours.bytes[order] == theirs.bytes).all()
    assert ours.num_read == (num * each if is_read else 0)
    assert mapped.num_open == 0


@pytest.mark.parametrize("can_pin", [True, False])
@pytest.mark.parametrize("block_nbytes", [16 << 10, 96 << 10], ids=["many a slot", "one a slot"])
def test_devices_exchange_blocks_through_the_ring_of_one(block_nbytes: int, can_pin: bool) -> None:
    """The ring has room for few of a request's blocks at a time."""
    workers, num, each = Workers("ipc"), 4, 50
    theirs = LateCopies(random_blocks(num * each, block_nbytes, 8), is_shared=False)
    ours = LateCopies(np.zeros_like(theirs.bytes), is_shared=False)
    device = InProcess(ours, in_reach=can_pin)
    memories = [DeviceMemory(copies, frame_nbytes=CONFIG.message_nbytes, ring_nbytes=1) for copies in (theirs, ours)]
    exporter, importer = (
        make(memory, transports=(ShmRingTransport(device, memory.ring_fd), IpcTransport()))
        for make, memory in zip((workers.exporter, workers.importer), memories, strict=True)
    )
    order = exchange(workers, exporter, importer, num, each)
    assert (ours.bytes[order] == theirs.bytes).all()
    assert ours.num_read == (num * each if can_pin else 0)
    assert len(memories[0]._reading) == MIN_SLOTS, "the ring is free again"
    assert device.num_open == 0


def test_an_importer_that_dies_gives_the_ring_back() -> None:
    theirs, ours = (
        LateCopies(random_blocks(64, 512, 8)),
        LateCopies(np.zeros((64, 512), dtype=np.uint8), patience=NEVER),
    )
    memory = DeviceMemory(theirs, frame_nbytes=512, ring_nbytes=1)
    workers = Workers("ipc")
    exporter = workers.exporter(memory, transports=(ShmRingTransport(InProcess(theirs), memory.ring_fd),), config=HASTY)
    reading = DeviceMemory(ours, frame_nbytes=512, ring_nbytes=1)
    importer = workers.importer(reading, transports=(ShmRingTransport(InProcess(ours), reading.ring_fd),), config=HASTY)
    try:
        ticket = TestTicket(request_id(0), source=exporter.endpoint)
        importer.fetch(ticket, 0, block_hashes(0, 64), range(64))
        offer_all(exporter, ticket, 0, list(range(64)))
        wait_until(lambda: ours.num_read > 0)
        workers.stop(importer)
        assert releases_of(exporter)[0].reason in ("cancelled", "expired")
        wait_until(lambda: len(memory._reading) == MIN_SLOTS)
    finally:
        workers.stop()


def test_what_a_peer_overwrites_while_it_is_read_is_seen() -> None:
    """The exporter's lease had ended: the sums that it sent are of other bytes than those that were copied."""
    theirs, ours = LateCopies(random_blocks(4, 512, 1)), LateCopies(np.zeros((4, 512), dtype=np.uint8), patience=NEVER)
    exporting, importing = small_memory(theirs), small_memory(ours)
    stage = exporting.stage_in_place([0, 1, 2, 3])
    theirs.work()
    told, payload = stage.read()
    assert not payload
    peer = PeerMemory(theirs.bytes.ctypes.data, theirs.bytes.nbytes)
    landing = importing.land_from(peer, [0, 1, 2, 3], [3, 2, 1, 0])
    assert not landing.is_ready()
    theirs.bytes[2] += 1
    ours.work()
    assert landing.is_ready()
    same = [a == b for a, b in zip(wire.digests(told), wire.digests(landing.checksums()), strict=True)]
    assert same == [True, True, False, True]


def test_blocks_do_not_change_under_what_the_engine_started_before_a_peer_is_read() -> None:
    theirs, ours = LateCopies(random_blocks(2, 512, 1)), LateCopies(np.zeros((2, 512), dtype=np.uint8))
    memory = small_memory(ours)
    step = ours.engine = LateMark()
    memory.expect([1])
    landing = memory.land_from(PeerMemory(theirs.bytes.ctypes.data, 1024), [0], [1])
    ours.work()
    assert not landing.is_ready()
    step.reached = True
    ours.work()
    assert landing.is_ready()
    assert (ours.bytes[1] == theirs.bytes[0]).all()


@pytest.mark.parametrize("address", ["cuda_ipc:///tmp/x", "cuda_ipc:///tmp/x#1/ab/0", "cuda_ipc:///tmp/x#1/ab/0/x"])
def test_an_address_that_names_no_memory_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="names no memory of a GPU"):
        CudaIpcTransport(InProcess(LateCopies(random_blocks(1, 512, 1)))).map(address)


@pytest.mark.parametrize("address", ["shm_ring:///tmp/x", "shm_ring:///tmp/x#1/2", "shm_ring:///tmp/x#0/1/2"])
def test_an_address_that_names_no_ring_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        ShmRingTransport(InProcess(LateCopies(random_blocks(1, 512, 1)))).map(address)


def test_the_memory_of_a_process_that_has_ended_is_unmapped() -> None:
    """Dead is enough: nobody has reaped it."""
    ours = LateCopies(np.zeros((4, 512), dtype=np.uint8))
    device = InProcess(ours)
    child = subprocess.Popen(["sleep", "1000"])
    try:
        address = f"cuda_ipc:///tmp/x#{child.pid}/{ours.bytes.ctypes.data.to_bytes(8, 'big').hex()}/0/2048"
        mapped = CudaIpcTransport(device).map(address)
        assert not mapped.is_gone()
        child.kill()
        wait_until(mapped.is_gone)
        mapped.close()
        assert device.num_open == 0
    finally:
        child.kill()
        child.wait()
    with pytest.raises(ConfigError, match="cannot be watched"):
        CudaIpcTransport(device).map(address)


def test_an_importer_lets_go_of_the_memory_of_an_exporter_that_died() -> None:
    theirs = LateCopies(random_blocks(4, 512, 8))
    ours = LateCopies(np.zeros_like(theirs.bytes))
    child = subprocess.Popen(["sleep", "1000"])
    workers = Workers("ipc")
    device = InProcess(ours)
    exporter = workers.exporter(small_memory(theirs), transports=(CudaIpcTransport(InProcess(theirs)), IpcTransport()))
    # its memory stands for one of another process, which is about to die
    source = exporter.endpoint.replace(f"#{os.getpid()}/", f"#{child.pid}/")
    importer = workers.importer(small_memory(ours), transports=(CudaIpcTransport(device),))
    try:
        importer.fetch(TestTicket(request_id(0), source=source), 0, block_hashes(0, 4), [0, 1, 2, 3])
        wait_until(lambda: device.num_open == 1)
        child.kill()
        wait_until(lambda: device.num_open == 0)
        (end,) = ends_of(importer)
        assert isinstance(end, FetchFailed), end
    finally:
        child.kill()
        child.wait()
        workers.stop()
