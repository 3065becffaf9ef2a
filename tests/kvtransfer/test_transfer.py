"""Exporter and importer over real sockets, each in its own thread, and against other processes that die."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from baton.curve import CurveKeys
from baton.errors import ConfigError
from baton.kvtransfer import wire
from baton.kvtransfer.bench.measure import measure
from baton.kvtransfer.bench.plan import Plan
from baton.kvtransfer.bench.timeline import STATIONS
from baton.kvtransfer.exporter import Exporter
from baton.kvtransfer.exports import Released
from baton.kvtransfer.importer import Importer
from baton.kvtransfer.imports import Event, Fetched, FetchFailed
from baton.kvtransfer.loop import TransferThread
from baton.kvtransfer.memory import BlockMemory, HostMemory, Stage
from baton.kvtransfer.settings import TransferConfig
from baton.kvtransfer.side import Side
from baton.kvtransfer.transports.ipc import IpcTransport
from baton.kvtransfer.transports.shm import ShmTransport
from baton.kvtransfer.transports.tcp import TcpTransport
from baton.kvtransfer.transports.transport import Endpoint, Transport, choose, host_id, only

from .blocks import BLOCK_NBYTES, LAYOUT, Blocks, TestTicket, block_hashes, request_id, wait_until

CONFIG = TransferConfig(num_sockets=2, frame_nbytes=64 << 10, lease_s=120.0, silence_s=60.0, stall_s=60.0, park_s=60.0)
"""Patient: a thread that a busy machine lets wait for seconds is not taken for dead."""
HASTY = replace(CONFIG, lease_s=2.0, renew_s=0.4, silence_s=1.0, stall_s=1.0, park_s=1.0)
"""For what ends by a deadline."""


def transports(scheme: str, memory: BlockMemory | None = None) -> Sequence[Transport]:
    """Make one way to move blocks; over shm an exporter's `memory` is read where it lies."""
    if scheme == "shm":
        return (ShmTransport(memory.fd if isinstance(memory, HostMemory) else None),)
    return (TcpTransport(),) if scheme == "tcp" else (IpcTransport(),)


class Workers:
    """Makes exporters and importers that are stopped when the test ends."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme
        self.threads: list[TransferThread] = []

    def exporter(self, memory: BlockMemory, **options: Any) -> Exporter:
        return self._start(Exporter(self._side(memory, transports(self.scheme, memory), "exporter-1", options)))

    def importer(self, memory: BlockMemory, *, running: bool = True, **options: Any) -> Importer:
        importer = Importer(self._side(memory, transports(self.scheme), "importer-1", options))
        return self._start(importer) if running else importer

    def _side(self, memory: BlockMemory, ways: Sequence[Transport], incarnation: str, options: dict[str, Any]) -> Side:
        defaults = {"layout": LAYOUT, "incarnation": incarnation, "config": CONFIG, "transports": ways}
        return Side(memory=memory, **defaults | options)

    def _start(self, part: Any) -> Any:
        thread = TransferThread(part).start()
        thread.part = part  # type: ignore[attr-defined]
        self.threads.append(thread)
        return part

    def stop(self, part: Exporter | Importer | None = None) -> None:
        for thread in list(self.threads):
            if part is None or thread.part is part:  # type: ignore[attr-defined]
                thread.stop()
                self.threads.remove(thread)


@pytest.fixture(params=["tcp", "ipc", "shm"])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    made = Workers(request.param)
    yield made
    made.stop()


@pytest.fixture
def tcp_workers() -> Iterator[Workers]:
    made = Workers("tcp")
    yield made
    made.stop()


def ends_of(importer: Importer, num_ends: int = 1) -> list[Fetched | FetchFailed]:
    """Wait for so many fetches to end."""
    ends: list[Fetched | FetchFailed] = []

    def take() -> bool:
        ends.extend(event for event in importer.events() if isinstance(event, Fetched | FetchFailed))
        return len(ends) >= num_ends

    wait_until(take)
    return ends


def releases_of(exporter: Exporter, num_releases: int = 1) -> list[Released]:
    """Wait for so many tickets to be released."""
    released: list[Released] = []

    def take() -> bool:
        released.extend(exporter.events())
        return len(released) >= num_releases

    wait_until(take)
    return released


def offer_all(exporter: Exporter, ticket: TestTicket, number: int, block_ids: list[int], meta: bytes = b"") -> None:
    """Offer a request whose prompt is computed already."""
    exporter.offer(ticket)
    exporter.publish(ticket.request_id, ticket.epoch, block_ids, block_hashes(number, len(block_ids)))
    exporter.finish(ticket.request_id, ticket.epoch, meta)


def assert_nothing_is_left(*parts: Exporter | Importer) -> None:
    assert all(part.num_open == 0 for part in parts)


def test_blocks_arrive_as_they_are_computed_and_reserved(workers: Workers) -> None:
    theirs, ours = Blocks(40, seed=1), Blocks(40)
    exporter, importer = workers.exporter(theirs.memory), workers.importer(ours.memory)
    ticket = TestTicket(request_id(1), source=exporter.endpoint)
    hashes = block_hashes(1, 30)
    from_blocks, to_blocks = list(range(5, 35)), list(range(39, 9, -1))
    importer.fetch(ticket, 0, hashes)
    exporter.offer(ticket)
    granted = landed = 0
    for first in range(0, 30, 10):
        exporter.publish(ticket.request_id, 0, from_blocks[first : first + 10], hashes[first : first + 10])
        while landed < first + 10:
            if landed == granted:
                importer.grant(ticket.request_id, 0, to_blocks[granted : granted + 5])
                granted += 5
            events: list[Event] = []
            wait_until(lambda events=events: bool(events.extend(importer.events()) or events))  # type: ignore[misc]
            landed = events[-1].num_blocks
            assert landed <= granted
            assert (ours.bytes[to_blocks[:landed]] == theirs.bytes[from_blocks[:landed]]).all()
    exporter.finish(ticket.request_id, 0, b"meta")
    (end,) = ends_of(importer)
    assert isinstance(end, Fetched)
    assert (end.num_blocks, end.meta) == (30, b"meta")
    assert releases_of(exporter) == [Released(ticket.request_id, 0, "fetched")]
    assert exporter.stats.bytes_sent == importer.stats.bytes_received == 30 * BLOCK_NBYTES
    assert_nothing_is_left(exporter, importer)


def test_blocks_that_the_importer_has_are_not_sent(workers: Workers) -> None:
    theirs, ours = Blocks(20, seed=2), Blocks(20)
    exporter, importer = workers.exporter(theirs.memory), workers.importer(ours.memory)
    ticket = TestTicket(request_id(1), source=exporter.endpoint)
    offer_all(exporter, ticket, 1, list(range(20)))
    importer.fetch(ticket, 17, block_hashes(1, 20)[17:], [1, 2, 3])
    (end,) = ends_of(importer)
    assert end.num_blocks == 3
    assert (ours.bytes[1:4] == theirs.bytes[17:20]).all()
    assert not ours.bytes[4:].any()
    assert exporter.stats.bytes_sent == 3 * BLOCK_NBYTES


def test_an_importer_that_has_all_blocks_still_gets_the_first_token(workers: Workers) -> None:
    exporter, importer = workers.exporter(Blocks(20, seed=2).memory), workers.importer(Blocks(20).memory)
    ticket = TestTicket(request_id(1), source=exporter.endpoint)
    importer.fetch(ticket, 20, [])
    offer_all(exporter, ticket, 1, list(range(20)), b"token")
    (end,) = ends_of(importer)
    assert isinstance(end, Fetched)
    assert end.meta == b"token"
    assert exporter.stats.bytes_sent == 0
    assert releases_of(exporter)[0].reason == "fetched"
    assert_nothing_is_left(exporter, importer)


def test_64_transfers_side_by_side_do_not_mix(workers: Workers) -> None:
    num, each = 64, 9
    theirs, ours = Blocks(num * each, seed=3), Blocks(num * each)
    exporter, importer = workers.exporter(theirs.memory), workers.importer(ours.memory)
    order = np.random.default_rng(4).permutation(num * each).tolist()
    for number in range(num):
        ticket = TestTicket(request_id(number), epoch=number, secret=secrets.token_bytes(16), source=exporter.endpoint)
        block_ids = order[number * each : (number + 1) * each]
        if number % 2:
            importer.fetch(ticket, 0, block_hashes(number, each), range(number * each, (number + 1) * each))
            offer_all(exporter, ticket, number, block_ids, bytes([number]))
        else:
            offer_all(exporter, ticket, number, block_ids, bytes([number]))
            importer.fetch(ticket, 0, block_hashes(number, each), range(number * each, (number + 1) * each))
    for end in ends_of(importer, num):
        assert isinstance(end, Fetched), end
        assert end.meta == bytes([end.epoch])
    assert (ours.bytes == theirs.bytes[order]).all()
    assert {released.reason for released in releases_of(exporter, num)} == {"fetched"}
    assert not exporter.stats.dropped
    # A fetch asked for again, since its answer was slow to come, may be answered twice.
    assert set(importer.stats.dropped) <= {"late"}
    assert_nothing_is_left(exporter, importer)


def test_a_block_that_changes_while_it_is_sent_is_not_used(tcp_workers: Workers) -> None:
    class TornStage(Stage):
        """Shows the checksum other bytes than the socket."""

        def read(self) -> tuple[bytes, Sequence[memoryview]]:
            checksums, views = super().read()
            torn = [bytearray(view) for view in views]
            torn[0][9] ^= 1
            return checksums, [memoryview(view) for view in torn]

    class TornMemory(HostMemory):
        def stage(self, block_ids: Sequence[int]) -> Stage | None:
            stage = super().stage(block_ids)
            assert stage is not None
            return TornStage(stage.read()[1], self.block_nbytes) if 17 in block_ids else stage

    theirs, ours = Blocks(20, seed=2), Blocks(20)
    exporter = tcp_workers.exporter(TornMemory(theirs.bytes, 20))
    importer = tcp_workers.importer(ours.memory)
    ticket = TestTicket(request_id(1), source=exporter.endpoint)
    importer.fetch(ticket, 0, block_hashes(1, 20), range(20))
    offer_all(exporter, ticket, 1, list(range(20)))
    (end,) = ends_of(importer)
    assert isinstance(end, FetchFailed)
    assert end.reason == "checksum"
    assert end.num_blocks <= 16
    assert (ours.bytes[: end.num_blocks] == theirs.bytes[: end.num_blocks]).all()
    assert importer.stats.integrity_failures == {"checksum": 1}
    assert releases_of(exporter)[0].reason == "cancelled"
    assert_nothing_is_left(exporter, importer)


def test_another_layout_never_pairs(workers: Workers) -> None:
    exporter = workers.exporter(Blocks(20, seed=2).memory)
    importer = workers.importer(Blocks(20).memory, layout="another")
    mine = TestTicket(request_id(1), source=exporter.endpoint)
    offer_all(exporter, mine, 1, list(range(20)))
    importer.fetch(mine, 0, block_hashes(1, 20), range(20))
    assert ends_of(importer)[0] == FetchFailed(request_id(1), 0, 0, "layout")
    other = replace(mine, request_id=request_id(2), layout="another")  # the router was told wrong
    offer_all(exporter, other, 2, list(range(20)))
    importer.fetch(other, 0, block_hashes(2, 20), range(20))
    assert ends_of(importer)[0] == FetchFailed(request_id(2), 0, 0, "layout")
    assert exporter.stats.bytes_sent == 0
    assert importer.stats.integrity_failures["layout"] >= 2
    assert len(releases_of(exporter, 2)) == 2
    assert_nothing_is_left(exporter, importer)


def test_a_withdrawn_ticket_ends_on_both_sides(workers: Workers) -> None:
    theirs, ours = Blocks(20, seed=2), Blocks(20)
    exporter, importer = workers.exporter(theirs.memory), workers.importer(ours.memory)
    ticket = TestTicket(request_id(1), epoch=4, source=exporter.endpoint)
    importer.fetch(ticket, 0, block_hashes(1, 20), range(20))
    exporter.offer(ticket)
    exporter.publish(ticket.request_id, 4, range(6), block_hashes(1, 6))
    wait_until(lambda: importer.stats.bytes_received == 6 * BLOCK_NBYTES)
    exporter.withdraw(ticket.request_id, 4)
    exporter.withdraw(ticket.request_id, 4)
    exporter.publish(ticket.request_id, 4, range(6, 9), block_hashes(1, 9)[6:])
    assert ends_of(importer)[0] == FetchFailed(ticket.request_id, 4, 6, "cancelled")
    assert releases_of(exporter) == [Released(ticket.request_id, 4, "cancelled")]
    assert_nothing_is_left(exporter, importer)


def test_a_cancelled_fetch_frees_the_exporter(workers: Workers) -> None:
    theirs, ours = Blocks(20, seed=2), Blocks(20)
    exporter, importer = workers.exporter(theirs.memory), workers.importer(ours.memory)
    ticket = TestTicket(request_id(1), source=exporter.endpoint)
    importer.fetch(ticket, 0, block_hashes(1, 20), range(20))
    exporter.offer(ticket)
    exporter.publish(ticket.request_id, 0, range(6), block_hashes(1, 6))
    wait_until(lambda: importer.stats.bytes_received == 6 * BLOCK_NBYTES)
    importer.cancel(ticket.request_id, 0)
    importer.cancel(ticket.request_id, 0)
    assert ends_of(importer)[0] == FetchFailed(ticket.request_id, 0, 6, "cancelled")
    assert releases_of(exporter)[0].reason == "cancelled"
    assert_nothing_is_left(exporter, importer)


def test_an_importer_that_does_not_read_holds_up_nobody(workers: Workers) -> None:
    if workers.scheme == "shm":
        pytest.skip("its messages carry no bytes: one turn of the importer may read them all")
    num, nbytes = 256, 256 << 10
    layout = wire.layout_fingerprint(nbytes)
    theirs = Blocks(num, seed=5, block_nbytes=nbytes)
    slow, quick = Blocks(num, block_nbytes=nbytes), Blocks(num, block_nbytes=nbytes)
    exporter = workers.exporter(theirs.memory, layout=layout, config=HASTY)
    stuck = workers.importer(slow.memory, layout=layout, config=HASTY, running=False)
    importer = workers.importer(quick.memory, layout=layout)
    tickets = [TestTicket(request_id(n), layout=layout, source=exporter.endpoint) for n in range(2)]
    for number, ticket in enumerate(tickets):
        offer_all(exporter, ticket, number, list(range(num)))
    stuck.fetch(tickets[0], 0, block_hashes(0, num), range(num))
    wait_until(lambda: exporter.stats.bytes_sent > 0, lambda: stuck.service(stuck.sockets()))  # type: ignore[arg-type, return-value]
    importer.fetch(tickets[1], 0, block_hashes(1, num), range(num))
    assert isinstance(ends_of(importer)[0], Fetched)
    assert exporter.stats.bytes_sent < 2 * num * nbytes, "the pipe of the stuck importer has no end"
    # Its blocks are queued for a process that lives and never reads: even they come back, with the connection.
    assert {released.reason for released in releases_of(exporter, 2)} == {"fetched", "expired"}
    stuck.close()
    assert (quick.bytes == theirs.bytes).all()
    assert_nothing_is_left(exporter, importer)


def test_garbage_from_strangers_is_counted_and_harms_nobody(workers: Workers) -> None:
    theirs, ours = Blocks(100, seed=2), Blocks(100)
    exporter, importer = workers.exporter(theirs.memory), workers.importer(ours.memory)
    ticket = TestTicket(request_id(1), source=exporter.endpoint)
    importer.fetch(ticket, 0, block_hashes(1, 100), range(50))
    exporter.offer(ticket)
    exporter.publish(ticket.request_id, 0, range(50), block_hashes(1, 50))
    context = zmq.Context()
    rng = np.random.default_rng(6)
    good = wire.seal(wire.Credit(ticket.request_id, 0, 100), b"x" * 16)
    num_frames = 10_000
    strangers = []
    addresses = Endpoint.parse(exporter.endpoint).addresses[workers.scheme]
    (way,) = transports(workers.scheme)
    for address in addresses:
        stranger = context.socket(zmq.DEALER)
        way.connect(stranger, address)
        for index in range(num_frames):
            frame = bytearray(good) if index % 2 else bytearray(rng.bytes(int(rng.integers(0, 80))))
            if index % 4 == 1:
                frame[int(rng.integers(0, len(frame)))] ^= 1 + int(rng.integers(0, 255))
            stranger.send_multipart([bytes(frame)] * (1 + (index % 97 == 0)))
        strangers.append(stranger)
        giant = context.socket(zmq.DEALER)
        way.connect(giant, address)
        giant.send(bytes(wire.MAX_HEADER_NBYTES + 1))  # ends this stranger's connection
        giant.close(linger=500)
    wait_until(lambda: exporter.stats.dropped.total() >= num_frames * len(addresses))
    for stranger in strangers:
        stranger.close(linger=0)
    importer.grant(ticket.request_id, 0, range(50, 100))
    exporter.publish(ticket.request_id, 0, range(50, 100), block_hashes(1, 100)[50:])
    exporter.finish(ticket.request_id, 0, b"meta")
    assert isinstance(ends_of(importer)[0], Fetched)
    assert (ours.bytes == theirs.bytes).all()
    assert {"garbage", "forged"} <= set(exporter.stats.dropped)
    assert releases_of(exporter)[0].reason == "fetched"
    assert_nothing_is_left(exporter, importer)
    context.term()


def test_a_fetch_without_a_ticket_ends_once_the_leg_has_looked_at_its_mail(tcp_workers: Workers) -> None:
    exporter = tcp_workers.exporter(Blocks(10).memory, config=HASTY)
    importer = tcp_workers.importer(Blocks(10).memory, config=HASTY)
    importer.fetch(TestTicket(request_id(1), source=exporter.endpoint), 0, block_hashes(1, 5), range(5))
    # far beyond park_s and silence_s, were they waited for; the exporter's leg is in a long step, and asks for nothing
    wait_until(lambda: exporter._exports._parked and exporter._exports._clock() > exporter._looked_at + 2.5)
    assert importer.events() == []
    ends: list[Event] = []
    wait_until(lambda: exporter.events() or ends.extend(importer.events()) or ends)
    assert ends == [FetchFailed(request_id(1), 0, 0, "unknown")]
    assert_nothing_is_left(exporter, importer)


def test_an_exporter_that_talks_garbage_fails_only_its_own_fetches(tcp_workers: Workers) -> None:
    theirs, ours = Blocks(40, seed=2), Blocks(40)
    # patient enough that all of the garbage is read before the exporter is taken for dead
    config = replace(CONFIG, silence_s=15.0)
    exporter, importer = tcp_workers.exporter(theirs.memory), tcp_workers.importer(ours.memory, config=config)
    context = zmq.Context()
    fake = context.socket(zmq.ROUTER)
    fake.setsockopt(zmq.SNDHWM, 0)  # a ROUTER drops at its bound without a word
    fake.setsockopt(zmq.LINGER, 0)  # so that a failure here keeps no later test waiting
    address = TcpTransport().bind(fake, 0)
    evil = TestTicket(request_id(9), source=f"host:{host_id()};{address}")
    importer.fetch(evil, 0, block_hashes(9, 20), range(20))
    peer = fake.recv_multipart()[0]
    rng = np.random.default_rng(7)
    for index in range(5000):
        fake.send_multipart([peer] + [rng.bytes(int(rng.integers(0, 60))) for _ in range(1 + index % 70)])
    wait_until(lambda: importer.stats.dropped["garbage"] == 5000)
    ticket = TestTicket(request_id(1), source=exporter.endpoint)
    importer.fetch(ticket, 0, block_hashes(1, 20), range(20, 40))
    offer_all(exporter, ticket, 1, list(range(20)))
    ends = {end.request_id: end for end in ends_of(importer, 2)}
    assert isinstance(ends[request_id(1)], Fetched)
    assert ends[request_id(9)] == FetchFailed(request_id(9), 0, 0, "silent")
    assert importer.stats.dropped["garbage"] == 5000
    assert (ours.bytes[20:] == theirs.bytes[:20]).all()
    fake.close(linger=0)
    context.term()
    assert_nothing_is_left(importer)


CHILD = """
import sys
import numpy as np
from baton.kvtransfer.exporter import Exporter
from baton.kvtransfer.importer import Importer
from baton.kvtransfer.loop import TransferThread
from baton.kvtransfer.side import Side
from tests.kvtransfer.blocks import Blocks, TestTicket, block_hashes, request_id
from tests.kvtransfer.test_transfer import HASTY, LAYOUT, transports

part_name, scheme, endpoint = sys.argv[1:]
if part_name == "exporter":
    memory = Blocks(20, seed=11).memory
    part = Exporter(Side(memory=memory, layout=LAYOUT, incarnation="exporter-1", config=HASTY,
                         transports=transports(scheme, memory)))
    part.offer(TestTicket(request_id(1)))
    part.publish(request_id(1), 0, range(7), block_hashes(1, 7))
    endpoint = part.endpoint
else:
    part = Importer(Side(memory=Blocks(20).memory, layout=LAYOUT, incarnation="importer-1", config=HASTY,
                         transports=transports(scheme)))
    part.fetch(TestTicket(request_id(1), source=endpoint), 0, block_hashes(1, 20), range(20))
TransferThread(part).start()
print(endpoint, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def child(workers: Workers) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Start another process that is the exporter, or the importer, of request 1."""
    started: list[subprocess.Popen[str]] = []

    def start(part_name: str, endpoint: str = "") -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, part_name, workers.scheme, endpoint],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_an_exporter_killed_in_the_middle_leaves_what_is_good(workers: Workers, child: Any) -> None:
    process, endpoint = child("exporter")
    ours = Blocks(20)
    importer = workers.importer(ours.memory, config=HASTY)
    importer.fetch(TestTicket(request_id(1), source=endpoint), 0, block_hashes(1, 20), range(20))
    wait_until(lambda: importer.stats.bytes_received == 7 * BLOCK_NBYTES)
    process.send_signal(signal.SIGKILL)
    assert ends_of(importer)[0] == FetchFailed(request_id(1), 0, 7, "silent")
    assert (ours.bytes[:7] == Blocks(20, seed=11).bytes[:7]).all()
    assert_nothing_is_left(importer)


@pytest.mark.parametrize("fatal", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_an_importer_gone_in_the_middle_strands_nothing(workers: Workers, child: Any, fatal: signal.Signals) -> None:
    exporter = workers.exporter(Blocks(20, seed=11).memory, config=HASTY)
    process, _ = child("importer", exporter.endpoint)  # first: a process may take longer to start than a lease
    exporter.offer(TestTicket(request_id(1)))
    exporter.publish(request_id(1), 0, range(7), block_hashes(1, 7))
    wait_until(lambda: exporter.stats.bytes_sent == 7 * BLOCK_NBYTES)
    process.send_signal(fatal)
    exporter.publish(request_id(1), 0, range(7, 20), block_hashes(1, 20)[7:])
    exporter.finish(request_id(1), 0)
    assert releases_of(exporter)[0].reason in ("expired", "fetched")
    assert_nothing_is_left(exporter)


def test_an_exporter_that_came_back_is_not_the_one_that_was_asked(tcp_workers: Workers) -> None:
    blocks = Blocks(20, seed=2)
    first = tcp_workers.exporter(blocks.memory, config=HASTY)
    importer = tcp_workers.importer(Blocks(20).memory, config=HASTY)
    ticket = TestTicket(request_id(1), source=first.endpoint)
    importer.fetch(ticket, 0, block_hashes(1, 20), range(20))
    offer = replace(ticket)
    first.offer(offer)
    wait_until(lambda: first._exports.num_open == 1)
    port = int(Endpoint.parse(first.endpoint).addresses["tcp"][0].rpartition(":")[2])
    config = replace(HASTY, num_sockets=1)
    tcp_workers.stop(first)
    tcp_workers.exporter(blocks.memory, incarnation="exporter-2", config=config, transports=(TcpTransport(port=port),))
    end = ends_of(importer)[0]
    assert isinstance(end, FetchFailed)
    assert end.reason in ("restarted", "silent", "closed")
    assert_nothing_is_left(importer)


def test_closing_releases_every_ticket_once(workers: Workers) -> None:
    exporter = workers.exporter(Blocks(20, seed=2).memory)
    importer = workers.importer(Blocks(20).memory)
    for number in range(5):
        ticket = TestTicket(request_id(number), source=exporter.endpoint)
        exporter.offer(ticket)
        importer.fetch(ticket, 0, block_hashes(number, 4), range(4))
    wait_until(lambda: exporter._exports.num_open == 5)
    workers.stop()
    assert sorted(released.request_id for released in exporter.events()) == [request_id(n) for n in range(5)]
    assert len([event for event in importer.events() if isinstance(event, FetchFailed)]) == 5
    assert_nothing_is_left(exporter, importer)


def test_only_holders_of_the_keys_connect(workers: Workers) -> None:
    keys, others = CurveKeys.generate(), CurveKeys.generate()
    theirs, ours = Blocks(20, seed=2), Blocks(20)
    exporter = workers.exporter(theirs.memory, keys=keys)
    wrong = CurveKeys(keys.public, others.secret)  # knows the public key, as anyone may
    own = CurveKeys(others.public, others.secret)
    for stranger_keys in (None, wrong, own):
        stranger = workers.importer(Blocks(20).memory, keys=stranger_keys, config=HASTY)
        stranger.fetch(TestTicket(request_id(1), source=exporter.endpoint), 0, block_hashes(1, 20), range(20))
        assert ends_of(stranger)[0] == FetchFailed(request_id(1), 0, 0, "silent")
    importer = workers.importer(ours.memory, keys=keys)
    ticket = TestTicket(request_id(1), source=exporter.endpoint)
    importer.fetch(ticket, 0, block_hashes(1, 20), range(20))
    offer_all(exporter, ticket, 1, list(range(20)))
    assert isinstance(ends_of(importer)[0], Fetched)
    assert (ours.bytes == theirs.bytes).all()


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "::"])
def test_a_wildcard_without_keys_is_refused(host: str) -> None:
    way = TcpTransport(host, announce="127.0.0.1")
    side = Side(memory=Blocks(4).memory, layout=LAYOUT, incarnation="x", transports=(way,))
    with pytest.raises(ConfigError, match="encrypt-kv"):
        Exporter(side)
    with pytest.raises(ConfigError, match="announce"):
        TcpTransport(host)
    keys = CurveKeys.generate()
    exporter = Exporter(replace(side, keys=keys))
    exporter.close()


def test_a_pair_on_one_host_meets_over_shared_memory_and_others_over_what_reaches() -> None:
    memory = Blocks(4).memory
    ours = (ShmTransport(memory.fd), IpcTransport(), TcpTransport())
    exporter = Exporter(Side(memory=memory, layout=LAYOUT, incarnation="x", transports=ours))
    endpoint = Endpoint.parse(exporter.endpoint)
    assert next(choose(ours, endpoint)).scheme == "shm"
    socket, _, _ = endpoint.addresses["shm"][0].rpartition("#")
    gone = replace(endpoint, addresses=endpoint.addresses | {"shm": (f"{socket}#1/99999/1",)})
    assert next(choose(ours, gone)).scheme == "ipc"
    another_file = replace(endpoint, addresses=endpoint.addresses | {"shm": (f"{socket}#{os.getpid()}/{memory.fd}/1",)})
    assert next(choose(ours, another_file)).scheme == "ipc"
    assert next(choose((ours[2],), endpoint)).scheme == "tcp"
    away = replace(endpoint, host="another", addresses=endpoint.addresses | {"tcp": ("tcp://10.1.2.3:5",)})
    assert next(choose(ours, away)).scheme == "tcp"
    with pytest.raises(ConfigError):
        choose(ours, replace(endpoint, host="another"))
    folders = {
        os.path.dirname(endpoint.addresses["ipc"][0].removeprefix("ipc://")),
        os.path.dirname(socket.removeprefix("shm://")),
    }
    assert len(folders) == 2
    assert all(map(os.path.exists, folders))
    exporter.close()
    assert not any(map(os.path.exists, folders))


def test_an_importer_cannot_write_into_the_memory_that_it_maps() -> None:
    memory = Blocks(4, seed=3).memory
    transport = ShmTransport(memory.fd)
    exporter = Exporter(Side(memory=memory, layout=LAYOUT, incarnation="x", transports=(transport,)))
    mapped = ShmTransport().map(Endpoint.parse(exporter.endpoint).addresses["shm"][0])
    assert isinstance(mapped.where, memoryview)
    assert mapped.where == memory.stage(range(4)).read()[1][0]
    assert mapped.where.readonly
    exporter.close()


@pytest.mark.parametrize("kind", ["unsealed", "empty", "on a disk", "a pipe"])
def test_only_memory_that_keeps_its_size_is_mapped(kind: str, tmp_path: Path) -> None:
    memory = Blocks(4).memory
    ours = (ShmTransport(memory.fd), IpcTransport())
    exporter = Exporter(Side(memory=memory, layout=LAYOUT, incarnation="x", transports=ours))
    endpoint = Endpoint.parse(exporter.endpoint)
    path = tmp_path / "file"
    if kind in ("unsealed", "empty"):
        fd = os.memfd_create("another")
        os.ftruncate(fd, 4096 if kind == "unsealed" else 0)
    elif kind == "on a disk":
        path.write_bytes(bytes(4096))
        fd = os.open(path, os.O_RDONLY)
    else:
        os.mkfifo(path)  # without O_NONBLOCK, opening it would wait for somebody who writes
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    socket, _, _ = endpoint.addresses["shm"][0].rpartition("#")
    address = f"{socket}#{os.getpid()}/{fd}/{os.fstat(fd).st_ino}"
    assert next(choose(ours, replace(endpoint, addresses=endpoint.addresses | {"shm": (address,)}))).scheme == "ipc"
    with pytest.raises(ConfigError):
        ShmTransport().map(address)
    os.close(fd)
    exporter.close()


def test_memory_that_others_map_cannot_be_cut_short() -> None:
    memory = Blocks(4).memory
    assert memory.fd is not None
    exporter = Exporter(Side(memory=memory, layout=LAYOUT, incarnation="x", transports=(ShmTransport(memory.fd),)))
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, 0)
    exporter.close()


@pytest.mark.parametrize("address", ["tcp://nonsense", "tcp://127.0.0.1:1;tcp://nonsense"])
def test_an_exporter_with_an_address_that_is_none_fails_its_fetch_alone(tcp_workers: Workers, address: str) -> None:
    theirs, ours = Blocks(4, seed=6), Blocks(4)
    exporter, importer = tcp_workers.exporter(theirs.memory), tcp_workers.importer(ours.memory)
    lost = TestTicket(request_id(1), source=f"host:{host_id()};{address}")
    importer.fetch(lost, 0, block_hashes(1, 2), range(2))
    end = ends_of(importer)[0]
    assert isinstance(end, FetchFailed)
    assert end.reason == "unreachable"
    ticket = TestTicket(request_id(2), source=exporter.endpoint)
    offer_all(exporter, ticket, 2, list(range(4)))
    importer.fetch(ticket, 0, block_hashes(2, 4), range(4))
    assert isinstance(ends_of(importer)[0], Fetched)


@pytest.mark.parametrize("text", ["", "host:x", "tcp://1.2.3.4:5", "host:x;nonsense", "host:x" + ";tcp://a:1" * 17])
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    importer = Importer(Side(memory=Blocks(4).memory, layout=LAYOUT, incarnation="x", transports=(TcpTransport(),)))
    with pytest.raises(ConfigError):
        importer.fetch(TestTicket(request_id(1), source=text), 0, [])
    assert importer.num_open == 0
    importer.close()


def test_misuse_is_refused_where_it_happens() -> None:
    exporter = Exporter(Side(memory=Blocks(4).memory, layout=LAYOUT, incarnation="x", transports=(TcpTransport(),)))
    importer = Importer(Side(memory=Blocks(4).memory, layout=LAYOUT, incarnation="x", transports=(TcpTransport(),)))
    ticket = TestTicket(request_id(1), source=exporter.endpoint)
    exporter.offer(ticket)
    importer.fetch(ticket, 0, block_hashes(1, 2))
    with pytest.raises(ValueError, match="already open"):
        exporter.offer(ticket)
    with pytest.raises(ValueError, match="already open"):
        importer.fetch(ticket, 0, [])
    with pytest.raises(ValueError, match="block ids"):
        exporter.publish(ticket.request_id, 0, [4], block_hashes(1, 1))
    with pytest.raises(ValueError, match="hashes"):
        exporter.publish(ticket.request_id, 0, [1, 2], block_hashes(1, 1))
    with pytest.raises(ValueError, match="block ids"):
        importer.grant(ticket.request_id, 0, [-1])
    with pytest.raises(ValueError, match="meta"):
        exporter.finish(ticket.request_id, 0, bytes(wire.MAX_META_NBYTES + 1))
    exporter.close()
    importer.close()
    assert_nothing_is_left_after(exporter, importer)


def assert_nothing_is_left_after(exporter: Exporter, importer: Importer) -> None:
    assert len(exporter.events()) == 1
    assert isinstance(importer.events()[-1], FetchFailed)
    assert_nothing_is_left(exporter, importer)


def test_transports_are_taken_by_name_and_a_wrong_name_is_refused_with_the_right_ones() -> None:
    ways = (IpcTransport(), TcpTransport())
    assert only(ways, ()) == list(ways)
    assert only(ways, ("tcp",)) == [ways[1]]
    with pytest.raises(ConfigError, match="kv_transports='cuda_ipc' is not valid: this worker can use ipc, tcp"):
        only(ways, ("tcp", "cuda_ipc"))


@pytest.mark.parametrize("scattered", [False, True])
def test_a_crew_copies_and_sums_what_one_thread_would(workers: Workers, scattered: bool) -> None:
    num, each = 8, 40
    theirs, ours = Blocks(num * each, seed=5, num_threads=3), Blocks(num * each, num_threads=3)
    exporter, importer = workers.exporter(theirs.memory), workers.importer(ours.memory)
    order = list(range(num * each))
    if scattered:
        order = np.random.default_rng(6).permutation(order).tolist()
    for number in range(num):
        ticket, span = (
            TestTicket(request_id(number), source=exporter.endpoint),
            slice(number * each, (number + 1) * each),
        )
        importer.fetch(ticket, 0, block_hashes(number, each), list(range(num * each))[span])
        offer_all(exporter, ticket, number, order[span])
    for end in ends_of(importer, num):
        assert isinstance(end, Fetched), end
    assert (ours.bytes == theirs.bytes[order]).all()
    releases_of(exporter, num)
    assert_nothing_is_left(exporter, importer)


def test_the_benchmark_moves_its_bytes() -> None:
    plan = Plan(scheme="ipc", block_nbytes=64 << 10, num_blocks=8, num_transfers=2, repeats=2, scattered=True)
    measured = measure(plan, rounds=1)
    assert min(*measured.bare.rates, *measured.ours.rates) > 0
    assert measured.exposed_ms > 0
    *stations, theirs, ours = measured.stations.items()
    assert [name for name, _ in stations] == list(STATIONS)
    assert stations == sorted(stations, key=lambda station: station[1])
    assert min(theirs[1], ours[1]) > 0
    assert "ipc" in str(measured)


def test_a_transfer_needs_no_torch() -> None:
    code = "import sys, baton.kvtransfer.exporter, baton.kvtransfer.importer; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
