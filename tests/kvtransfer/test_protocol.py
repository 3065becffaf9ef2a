"""The protocol's two sides over a network that delays, reorders, loses, doubles and damages what it carries.

No sockets, threads or real time: hypothesis chooses every step. What must hold however it goes:
blocks that count as landed equal the exporter's bytes; no block travels beyond its credit; an exporter's blocks change
only after their one release, an importer's are not written after their one end; and in the end nothing is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from baton.kvtransfer import wire
from baton.kvtransfer.exports import Batch, Exports
from baton.kvtransfer.imports import Event, Fetched, FetchFailed, Imports, Landed
from baton.kvtransfer.memory import Landing, PeerMemory, Stage
from baton.kvtransfer.parked import MAX_PARKED, MAX_PARKED_NBYTES
from baton.kvtransfer.settings import TransferConfig, TransferStats
from baton.kvtransfer.side import Side
from baton.kvtransfer.wire import Reads

from .blocks import LAYOUT, SECRET, Clock, TestTicket, block_hashes, request_id

NUM_REQUESTS = 3
NUM_BLOCKS = 7
"""Of each request; two fit in one message."""
NBYTES = 32 << 10
RING_BLOCKS = 5
POISON = 0xEE
PEER = b"peer id of 16 by"
CONFIG = TransferConfig(frame_nbytes=2 * NBYTES, lease_s=10.0, renew_s=2.0, silence_s=3.0, stall_s=5.0, park_s=5.0)
META = b"first token"


class SlowMemory:
    """A memory that stages and lands when told, as a GPU's copies do when they like."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.block_nbytes = NBYTES
        self.place_nbytes = self.ring_nbytes = 0
        self.ring = np.zeros((RING_BLOCKS, NBYTES), dtype=np.uint8)
        self.free = list(range(RING_BLOCKS))
        self.bytes = np.full((num_blocks, NBYTES), POISON, dtype=np.uint8)
        self.waiting: list[Copy] = []
        self.num_stages = 0

    def stage(self, block_ids: Sequence[int]) -> Copy | None:
        if self.num_stages == 4:
            return None
        self.num_stages += 1
        staged = np.empty((len(block_ids), NBYTES), dtype=np.uint8)

        def run() -> None:
            staged[:] = self.bytes[list(block_ids)]

        copy = Copy(self, run, [staged.reshape(-1).data])
        self.waiting.append(copy)
        return copy

    def expect(self, block_ids: Sequence[int]) -> None:
        pass

    def stage_in_place(self, block_ids: Sequence[int]) -> Stage:
        return Stage([self.bytes[at].data for at in block_ids], NBYTES)

    def stage_in_ring(self, block_ids: Sequence[int]) -> Copy | None:
        if len(self.free) < len(block_ids):
            return None
        self.num_stages += 1
        places = [self.free.pop() for _ in block_ids]

        def run() -> None:
            self.ring[places] = self.bytes[list(block_ids)]

        copy = Copy(self, run, [self.ring[at].data for at in places])
        copy.places = places
        self.waiting.append(copy)
        return copy

    def land(self, block_ids: Sequence[int], blocks: Sequence[memoryview]) -> Landing:
        taken = np.frombuffer(b"".join(blocks), dtype=np.uint8).reshape(-1, NBYTES)
        return self._land(block_ids, lambda: taken)

    def land_from(self, peer: PeerMemory, places: Sequence[int], block_ids: Sequence[int]) -> Landing:
        """Read the peer's bytes when the copy runs, whatever they are by then."""
        assert isinstance(peer.where, memoryview)
        theirs = np.frombuffer(peer.where, dtype=np.uint8).reshape(-1, NBYTES)
        return self._land(block_ids, lambda: theirs[list(places)])

    def _land(self, block_ids: Sequence[int], read: Callable[[], np.ndarray[Any, Any]]) -> Landing:
        sums: list[bytes] = []

        def run() -> None:
            taken = self.bytes[list(block_ids)] = read()
            sums.extend(wire.checksum(block.data) for block in taken)

        copy = Copy(self, run, [])
        self.waiting.append(copy)
        return Landing(lambda: b"".join(sums), copy.is_ready)

    def work(self) -> None:
        while self.waiting:
            copy = self.waiting.pop(0)
            copy.run()
            copy.done = True


class Copy(Stage):
    def __init__(self, memory: SlowMemory, run: Callable[[], None], views: Sequence[memoryview]) -> None:
        super().__init__(views, NBYTES)
        self.memory = memory
        self.run = run
        self.done = self.released = False

    def is_ready(self) -> bool:
        return self.done

    def release(self) -> None:
        assert self.done, "released while the copy runs"
        assert not self.released, "released twice"
        self.released = True
        self.memory.num_stages -= 1
        self.memory.free += self.places


@dataclass(eq=False)
class Message:
    to_exporter: bool
    frames: list[Any]
    copies: list[int] = field(default_factory=lambda: [1])
    """How many of it are under way, shared by its doubles: at none the sockets have let go of the payload."""


class World:
    """One exporter, one importer, and the messages between them; `reads`: what the importer reads in the exporter's memory."""

    def __init__(self, *, reads: Reads = Reads.NOTHING) -> None:
        self.clock = Clock()
        self.leg_looks = True
        self.exporter_memory = SlowMemory(NUM_REQUESTS * NUM_BLOCKS)
        self.importer_memory = SlowMemory(NUM_REQUESTS * NUM_BLOCKS)
        self.reads = reads
        if reads is Reads.BLOCKS:
            self.exporter_memory.place_nbytes = 2 * NBYTES
        if reads is Reads.RING:
            self.exporter_memory.ring_nbytes = 2 * NBYTES
        self.sent_stats, self.got_stats = TransferStats(), TransferStats()
        common: dict[str, Any] = {"layout": LAYOUT, "config": CONFIG, "clock": self.clock}
        self.exports = Exports(
            Side(memory=self.exporter_memory, incarnation="exporter-1", stats=self.sent_stats, **common)
        )
        self.imports = Imports(
            Side(memory=self.importer_memory, incarnation="importer-1", stats=self.got_stats, **common)
        )
        self.network: list[Message] = []
        self.released: Counter[wire.Key] = Counter()
        self.ended: dict[wire.Key, Event] = {}
        self.offered: dict[wire.Key, int] = {}
        self.fetched: dict[wire.Key, int] = {}
        self.granted: Counter[wire.Key] = Counter()
        self.epoch_of = dict.fromkeys(range(NUM_REQUESTS), -1)

    # The legs

    def content(self, key: wire.Key) -> np.ndarray[Any, Any]:
        """What the exporter's blocks of a ticket hold: [NUM_BLOCKS, NBYTES]."""
        seed = (int.from_bytes(key[0], "big") * 31 + key[1] * 7) % 200
        return (np.arange(NUM_BLOCKS, dtype=np.uint8)[:, None] + np.uint8(seed)).repeat(NBYTES, axis=1)

    def blocks_of(self, number: int) -> list[int]:
        return list(range(number * NUM_BLOCKS, (number + 1) * NUM_BLOCKS))

    def offer(self, key: wire.Key) -> None:
        self.offered[key] = 0
        self.exports.offer(key, SECRET)

    def publish(self, key: wire.Key, num_blocks: int) -> None:
        number, first = int.from_bytes(key[0], "big"), self.offered[key]
        stop = min(NUM_BLOCKS, first + num_blocks)
        ids = self.blocks_of(number)[first:stop]
        self.exporter_memory.bytes[ids] = self.content(key)[first:stop]
        self.offered[key] = stop
        self.exports.publish(key, ids, b"".join(block_hashes(number, NUM_BLOCKS)[first:stop]))

    def fetch(self, key: wire.Key, from_block: int) -> None:
        self.fetched[key] = from_block
        hashes = block_hashes(int.from_bytes(key[0], "big"), NUM_BLOCKS)[from_block:]
        theirs = self.exporter_memory
        view = (theirs.ring if self.reads is Reads.RING else theirs.bytes).reshape(-1).data
        memory = PeerMemory(view, view.nbytes, reads=self.reads) if self.reads else None
        self.imports.fetch(key, TestTicket(*key), from_block, b"".join(hashes), peer_memory=memory)

    def grant(self, key: wire.Key, num_blocks: int) -> None:
        first = self.fetched[key] + self.granted[key]
        ids = self.blocks_of(int.from_bytes(key[0], "big"))[first : first + num_blocks]
        self.granted[key] += len(ids)
        self.imports.grant(key, ids)

    # The sockets

    def pump(self, *, refuse: bool = False) -> None:
        """Take what both sides want to send."""
        while self.imports.requests:
            _, header = self.imports.requests.popleft()
            self.network.append(Message(True, [header]))
        while self.exports.replies:
            peer, header = self.exports.replies.popleft()
            assert peer == PEER
            self.network.append(Message(False, [header]))
        for batch in self.exports.ready_batches():
            if refuse:
                continue
            copies = [1]
            header, payload = self.exports.take(batch, lambda copies=copies: not copies[0])  # type: ignore[misc]
            self.check_credit(batch, header)
            self.network.append(Message(False, [header, *payload], copies))

    def check_credit(self, batch: Batch, header: bytes) -> None:
        message, _ = wire.parse(header, wire.TO_IMPORTER)
        if isinstance(message, wire.Blocks):
            assert message.first_block >= self.fetched[batch.key], "a block that the importer has"
            assert message.first_block + message.num_blocks <= self.fetched[batch.key] + self.granted[batch.key]

    def deliver(self, message: Message, damage: int | None = None) -> None:
        frames = [bytearray(frame) for frame in message.frames]
        if damage is not None:
            at = damage % sum(map(len, frames)) if len(frames) > 1 else damage % len(frames[0])
            for frame in frames:
                if at < len(frame):
                    frame[at] ^= 1 << damage % 8
                    break
                at -= len(frame)
        if message.to_exporter:
            self.exports.receive(PEER, frames)
        else:
            self.imports.receive(TestTicket(b"").source, frames)
        self.drop(message)

    def drop(self, message: Message) -> None:
        self.network.remove(message)
        message.copies[0] -= 1

    def sweep(self) -> None:
        if self.leg_looks:
            self.exports.looked_at = self.clock.now
        self.exports.sweep()
        self.imports.sweep()
        self.take_events()

    # What must hold

    def take_events(self) -> None:
        while self.exports.events:
            released = self.exports.events.popleft()
            key = released.request_id, released.epoch
            self.released[key] += 1
            assert self.released[key] == 1, "released twice"
            first = int.from_bytes(key[0], "big") * NUM_BLOCKS
            self.exporter_memory.bytes[first : first + self.offered[key]] = POISON
        while self.imports.events:
            event = self.imports.events.popleft()
            key = event.request_id, event.epoch
            assert key not in self.ended, "an event after the end"
            first = self.fetched[key]
            ids = self.blocks_of(int.from_bytes(key[0], "big"))
            good = ids[first : first + event.num_blocks]
            want = self.content(key)[first : first + event.num_blocks]
            assert (self.importer_memory.bytes[good] == want).all(), "landed, but not what was sent"
            if not isinstance(event, Landed):
                self.ended[key] = event
                self.importer_memory.bytes[ids] = POISON
            if isinstance(event, Fetched):
                assert event.meta == META
                assert event.num_blocks == NUM_BLOCKS - first

    def check_ended_blocks(self) -> None:
        for number in range(NUM_REQUESTS):
            key = request_id(number), self.epoch_of[number]
            if key in self.ended:
                assert (self.importer_memory.bytes[self.blocks_of(number)] == POISON).all(), "written after the end"

    def settle(self) -> None:
        """Let all time pass and all messages come, or be lost with their connection."""
        for _ in range(40):
            self.exporter_memory.work()
            self.importer_memory.work()
            self.pump()
            for message in list(self.network):
                self.deliver(message)
            self.clock.now += 1.0
            self.sweep()

    def check_nothing_left(self) -> None:
        assert self.exports.num_open == self.imports.num_open == 0
        assert set(self.released) == set(self.offered)
        assert set(self.ended) == set(self.fetched)
        assert self.exporter_memory.num_stages == 0
        assert len(self.exporter_memory.free) == RING_BLOCKS


class TicketProtocol(RuleBasedStateMachine):
    """Any order of what legs say and the network does."""

    reads = Reads.NOTHING

    def __init__(self) -> None:
        super().__init__()
        self.world = World(reads=self.reads)

    def key(self, number: int) -> wire.Key:
        return request_id(number), self.world.epoch_of[number]

    @rule(number=st.integers(0, NUM_REQUESTS - 1))
    def new_epoch(self, number: int) -> None:
        """Replay a request, once both legs have put its last epoch away."""
        world, key = self.world, self.key(number)
        if (key in world.offered and key not in world.released) or (key in world.fetched and key not in world.ended):
            return
        world.epoch_of[number] += 1

    @rule(number=st.integers(0, NUM_REQUESTS - 1))
    def offer(self, number: int) -> None:
        if self.key(number)[1] >= 0 and self.key(number) not in self.world.offered:
            self.world.offer(self.key(number))

    @rule(number=st.integers(0, NUM_REQUESTS - 1), num_blocks=st.integers(1, 4))
    def publish(self, number: int, num_blocks: int) -> None:
        key = self.key(number)
        if key in self.world.offered and key not in self.world.released:
            self.world.publish(key, num_blocks)
            if self.world.offered[key] == NUM_BLOCKS:
                self.world.exports.finish(key, META)

    @rule(number=st.integers(0, NUM_REQUESTS - 1))
    def withdraw(self, number: int) -> None:
        if self.key(number)[1] >= 0:
            self.world.exports.withdraw(*self.key(number))

    @rule(number=st.integers(0, NUM_REQUESTS - 1), from_block=st.integers(0, NUM_BLOCKS))
    def fetch(self, number: int, from_block: int) -> None:
        if self.key(number)[1] >= 0 and self.key(number) not in self.world.fetched:
            self.world.fetch(self.key(number), from_block)

    @rule(number=st.integers(0, NUM_REQUESTS - 1), num_blocks=st.integers(1, NUM_BLOCKS))
    def grant(self, number: int, num_blocks: int) -> None:
        key = self.key(number)
        if key in self.world.fetched and key not in self.world.ended:
            self.world.grant(key, num_blocks)

    @rule(number=st.integers(0, NUM_REQUESTS - 1))
    def cancel(self, number: int) -> None:
        if self.key(number)[1] >= 0:
            self.world.imports.cancel(self.key(number))

    @rule(refuse=st.booleans())
    def pump(self, refuse: bool) -> None:
        self.world.pump(refuse=refuse)

    @rule()
    def all_goes_well_for_a_while(self) -> None:
        """Without this, most runs never get far."""
        world = self.world
        for _ in range(3):
            world.exporter_memory.work()
            world.pump()
            for message in list(world.network):
                world.deliver(message)
            world.importer_memory.work()
            world.sweep()

    @precondition(lambda self: self.world.network)
    @rule(which=st.integers(min_value=0))
    def deliver(self, which: int) -> None:
        self.world.deliver(self.world.network[which % len(self.world.network)])

    @precondition(lambda self: self.world.network)
    @rule(which=st.integers(min_value=0), damage=st.integers(0, 1 << 20))
    def deliver_damaged(self, which: int, damage: int) -> None:
        self.world.deliver(self.world.network[which % len(self.world.network)], damage)

    @precondition(lambda self: self.world.network)
    @rule(which=st.integers(min_value=0))
    def lose(self, which: int) -> None:
        self.world.drop(self.world.network[which % len(self.world.network)])

    @precondition(lambda self: self.world.network)
    @rule(which=st.integers(min_value=0))
    def double(self, which: int) -> None:
        message = self.world.network[which % len(self.world.network)]
        message.copies[0] += 1
        self.world.network.append(Message(message.to_exporter, message.frames, message.copies))

    @rule()
    def exporter_copies(self) -> None:
        self.world.exporter_memory.work()

    @rule()
    def importer_copies(self) -> None:
        self.world.importer_memory.work()

    @rule(seconds=st.sampled_from([0.3, 1.0, 2.5]))
    def wait(self, seconds: float) -> None:
        self.world.clock.now += seconds
        self.world.sweep()

    @invariant()
    def nothing_is_wrong(self) -> None:
        self.world.take_events()
        self.world.check_ended_blocks()

    def teardown(self) -> None:
        for key in set(self.world.fetched) - set(self.world.ended):
            self.world.imports.cancel(key)
        self.world.settle()
        self.world.check_nothing_left()


TicketProtocol.TestCase.settings = settings(max_examples=200, stateful_step_count=80, deadline=None)
TestTicketProtocol = TicketProtocol.TestCase


class PlacedProtocol(TicketProtocol):
    """The same where the importer reads blocks in the exporter's memory, also after the exporter has overwritten them."""

    reads = Reads.BLOCKS


class RingProtocol(TicketProtocol):
    """The same where the importer reads copies in the exporter's ring, which is too small for one request."""

    reads = Reads.RING


PlacedProtocol.TestCase.settings = TicketProtocol.TestCase.settings
TestPlacedProtocol = PlacedProtocol.TestCase
RingProtocol.TestCase.settings = settings(TicketProtocol.TestCase.settings, max_examples=100)
TestRingProtocol = RingProtocol.TestCase


def start(world: World, *, from_block: int = 0, num_blocks: int = NUM_BLOCKS) -> wire.Key:
    """Bring one request to where its first messages wait in the network."""
    world.epoch_of[0] += 1
    key = request_id(0), world.epoch_of[0]
    world.offer(key)
    world.publish(key, num_blocks)
    if num_blocks == NUM_BLOCKS:
        world.exports.finish(key, META)
    world.fetch(key, from_block)
    world.grant(key, NUM_BLOCKS)
    return key


def carry(world: World, spoil: Callable[[Message], list[Message] | None], *, rounds: int = 25) -> None:
    """Deliver everything in order, but what `spoil` puts in place of a message."""
    for _ in range(rounds):
        world.exporter_memory.work()
        world.importer_memory.work()
        world.pump()
        for message in list(world.network):
            instead = spoil(message)
            if instead is None:
                world.deliver(message)
                continue
            world.drop(message)
            for other in instead:
                other.copies[0] += 1
                world.network.append(other)
                world.deliver(other)
        world.clock.now += 1.0
        world.sweep()


def kind(message: Message) -> Any:
    decoder = wire.TO_EXPORTER if message.to_exporter else wire.TO_IMPORTER
    return wire.parse(message.frames[0], decoder)[0]


@pytest.mark.parametrize("from_block", [0, 1, 6, 7])
def test_a_fetch_ends_with_all_that_was_missing_and_nothing_more(from_block: int) -> None:
    world = World()
    key = start(world, from_block=from_block)
    carry(world, lambda message: None)
    assert isinstance(world.ended[key], Fetched)
    assert world.sent_stats.bytes_sent == (NUM_BLOCKS - from_block) * NBYTES
    assert world.sent_stats.releases == {"fetched": 1}
    world.check_nothing_left()


def test_a_credit_that_crosses_the_end_does_not_make_the_fetch_a_cancelled_one() -> None:
    """The importer said it before END came, and has all by now."""
    world = World()
    key = start(world)

    def delay_credit(message: Message) -> list[Message] | None:
        if isinstance(kind(message), wire.Done):
            return [Message(True, [wire.seal(wire.Credit(*key, NUM_BLOCKS), SECRET)]), message]
        return None

    carry(world, delay_credit)
    assert isinstance(world.ended[key], Fetched)
    assert world.sent_stats.releases == {"fetched": 1}
    world.check_nothing_left()


def test_a_flipped_bit_fails_the_fetch_from_that_block_on() -> None:
    world = World()
    key = start(world)

    def flip(message: Message) -> list[Message] | None:
        if isinstance(header := kind(message), wire.Blocks) and header.first_block == 2:
            payload = bytearray(message.frames[1])
            payload[NBYTES + 5] ^= 4  # in block 3
            return [Message(False, [message.frames[0], payload])]
        return None

    carry(world, flip)
    assert world.ended[key] == FetchFailed(*key, 3, "checksum")
    assert world.got_stats.integrity_failures == {"checksum": 1}
    world.check_nothing_left()


def test_blocks_read_where_they_lie_arrive_without_a_payload() -> None:
    world = World(reads=Reads.BLOCKS)
    key = start(world)
    num_frames = []

    def look(message: Message) -> None:
        num_frames.append(len(message.frames))

    carry(world, look)
    assert isinstance(world.ended[key], Fetched)
    assert set(num_frames) == {1}
    world.check_nothing_left()


@pytest.mark.parametrize("from_block", [0, 3])
def test_a_ring_smaller_than_the_prompt_is_filled_again_as_it_is_read(from_block: int) -> None:
    world = World(reads=Reads.RING)
    key = start(world, from_block=from_block)
    num_frames = []
    carry(world, lambda message: num_frames.append(len(message.frames)))
    assert isinstance(world.ended[key], Fetched)
    assert set(num_frames) == {1}
    world.check_nothing_left()


def test_a_block_that_is_overwritten_before_it_is_read_is_not_used() -> None:
    world = World(reads=Reads.BLOCKS)
    key = start(world)

    def overwrite(message: Message) -> None:
        if not message.to_exporter and isinstance(kind(message), wire.Blocks):
            world.exporter_memory.bytes[world.blocks_of(0)[3]] ^= 1

    carry(world, overwrite)
    end = world.ended[key]
    assert isinstance(end, FetchFailed)
    assert (end.num_blocks, end.reason) == (3, "checksum")
    world.settle()
    world.check_nothing_left()


def test_two_swapped_blocks_are_seen() -> None:
    world = World()
    key = start(world)

    def swap(message: Message) -> list[Message] | None:
        if isinstance(kind(message), wire.Blocks) and len(message.frames[1]) == 2 * NBYTES:
            payload = bytes(message.frames[1])
            return [Message(False, [message.frames[0], payload[NBYTES:] + payload[:NBYTES]])]
        return None

    carry(world, swap)
    assert world.ended[key] == FetchFailed(*key, 0, "checksum")


def test_a_payload_cut_short_is_seen() -> None:
    world = World()
    key = start(world)

    def cut(message: Message) -> list[Message] | None:
        return [Message(False, message.frames[:1])] if isinstance(kind(message), wire.Blocks) else None

    carry(world, cut)
    assert world.ended[key] == FetchFailed(*key, 0, "size")


def test_every_message_delivered_twice_changes_nothing() -> None:
    world = World()
    key = start(world)
    carry(world, lambda message: [message, Message(message.to_exporter, message.frames)])
    assert isinstance(world.ended[key], Fetched)
    assert world.got_stats.dropped["duplicate"] > 0
    assert world.got_stats.bytes_received == NUM_BLOCKS * NBYTES
    world.check_nothing_left()


@pytest.mark.parametrize("lost_type", [wire.Fetch, wire.Credit, wire.State, wire.Hello, wire.End])
def test_what_is_lost_once_is_asked_for_again(lost_type: type) -> None:
    world = World()
    key = start(world)
    lost = []

    def lose_first(message: Message) -> list[Message] | None:
        if isinstance(kind(message), lost_type) and not lost:
            lost.append(message)
            return []
        return None

    carry(world, lose_first)
    assert isinstance(world.ended[key], Fetched)
    assert lost or lost_type is wire.Credit
    world.check_nothing_left()


def test_a_lost_frame_leaves_what_came_before_it() -> None:
    world = World()
    key = start(world)

    def lose_last(message: Message) -> list[Message] | None:
        return [] if isinstance(header := kind(message), wire.Blocks) and header.first_block == 6 else None

    carry(world, lose_last)
    assert world.ended[key] == FetchFailed(*key, 6, "lost")
    world.check_nothing_left()


def test_an_exporter_that_computes_for_long_is_not_given_up() -> None:
    world = World()
    key = start(world, num_blocks=3)
    carry(world, lambda message: None, rounds=60)
    assert key not in world.ended
    world.publish(key, NUM_BLOCKS)
    world.exports.finish(key, META)
    carry(world, lambda message: None)
    assert isinstance(world.ended[key], Fetched)


def test_a_fetch_of_a_queued_prompt_is_told_its_place_and_how_long_it_will_take() -> None:
    world = World()
    key = start(world, num_blocks=0)
    world.exports.foretell(key, 5000, 8.0)
    carry(world, lambda message: None, rounds=3)
    assert world.got_stats.fetches_queued == 1
    assert 4.0 < world.got_stats.longest_queued_s < 8.0
    world.publish(key, NUM_BLOCKS)
    world.exports.finish(key, META)
    carry(world, lambda message: None)
    assert (world.got_stats.fetches_queued, world.got_stats.longest_queued_s) == (0, 0.0)


def test_a_silent_exporter_is_given_up_with_what_is_good() -> None:
    world = World()
    key = start(world, num_blocks=4)
    carry(world, lambda message: None)
    carry(world, lambda message: [])
    assert world.ended[key] == FetchFailed(*key, 4, "silent")
    carry(world, lambda message: None)
    assert world.sent_stats.releases == {"expired": 1}
    world.check_nothing_left()


def test_frames_of_an_old_epoch_are_dropped_and_counted() -> None:
    world = World()
    old = start(world)
    kept: list[Message] = []
    carry(world, lambda message: kept.append(Message(message.to_exporter, message.frames)))  # type: ignore[func-returns-value]
    kept = [Message(message.to_exporter, [bytes(frame) for frame in message.frames]) for message in kept]
    new = start(world, num_blocks=2)
    for message in kept:
        message.copies[0] = 1
        world.network.append(message)
        world.deliver(message)
    assert world.got_stats.dropped["old_epoch"] > 0
    assert world.sent_stats.dropped["old_epoch"] > 0
    world.publish(new, NUM_BLOCKS)
    world.exports.finish(new, META)
    carry(world, lambda message: None)
    assert isinstance(world.ended[old], Fetched)
    assert isinstance(world.ended[new], Fetched)
    world.check_nothing_left()


def test_a_newer_epoch_closes_the_older_one() -> None:
    world = World()
    old = start(world, num_blocks=3)
    carry(world, lambda message: None, rounds=6)
    world.offer((old[0], old[1] + 1))
    carry(world, lambda message: None, rounds=2)
    assert world.ended[old] == FetchFailed(*old, 3, "cancelled")
    assert world.sent_stats.releases == {"cancelled": 1}


def test_what_nobody_fetches_is_released_when_its_lease_ends() -> None:
    world = World()
    key = request_id(0), 0
    world.offer(key)
    world.publish(key, NUM_BLOCKS)
    world.clock.now += CONFIG.lease_s - 0.1
    world.sweep()
    assert world.exports.num_open == 1
    world.clock.now += 0.2
    world.sweep()
    assert world.sent_stats.releases == {"expired": 1}
    world.check_nothing_left()


def test_an_importer_that_gives_up_before_it_fetches_frees_the_exporter() -> None:
    world = World()
    key = request_id(0), 0
    world.offer(key)
    world.publish(key, 3)
    world.exports.receive(PEER, [wire.seal(wire.Cancel(*key), b"t" * 16)])
    assert world.exports.num_open == 1
    world.exports.receive(PEER, [wire.seal(wire.Cancel(*key), SECRET)])
    world.take_events()
    world.check_nothing_left()


def test_a_fetch_that_nothing_is_offered_for_ends() -> None:
    world = World()
    key = request_id(0), 0
    world.fetch(key, 0)
    carry(world, lambda message: None)
    assert world.ended[key] == FetchFailed(*key, 0, "unknown")
    assert world.sent_stats.dropped["never_offered"] == 1


def test_a_fetch_waits_while_a_long_step_keeps_its_request_from_being_read() -> None:
    world = World()
    key = request_id(0), 0
    world.fetch(key, 0)
    world.grant(key, NUM_BLOCKS)
    world.leg_looks = False
    carry(world, lambda message: None, rounds=100)
    assert key not in world.ended
    world.offer(key)
    world.leg_looks = True
    carry(world, lambda message: None, rounds=100)  # queued, and computed for long
    world.publish(key, NUM_BLOCKS)
    world.exports.finish(key, META)
    carry(world, lambda message: None)
    assert isinstance(world.ended[key], Fetched)
    world.check_nothing_left()


def test_a_fetch_whose_answers_are_all_lost_waits_while_its_exporter_lives() -> None:
    world = World()
    key = start(world, num_blocks=0)
    carry(world, lambda message: [] if isinstance(kind(message), wire.State) else None, rounds=60)
    assert key not in world.ended
    world.publish(key, NUM_BLOCKS)
    world.exports.finish(key, META)
    carry(world, lambda message: None)
    assert isinstance(world.ended[key], Fetched)


def test_a_parked_fetch_that_nobody_repeats_is_forgotten() -> None:
    world = World()
    key = request_id(0), 0
    world.exports.receive(PEER, [wire.seal(wire.Fetch(*key, LAYOUT, 0, 0, b""), SECRET)])
    world.leg_looks = False
    world.clock.now += CONFIG.lease_s + 1
    world.sweep()
    assert not world.exports._parked
    assert not world.exports.replies


def test_a_fetch_sealed_with_another_secret_is_dropped_and_ends() -> None:
    world = World()
    key = request_id(0), 0
    world.offer(key)
    world.publish(key, NUM_BLOCKS)
    world.fetched[key] = 0
    hashes = b"".join(block_hashes(0, NUM_BLOCKS))
    world.imports.fetch(key, TestTicket(*key, secret=b"t" * 16), 0, hashes)
    carry(world, lambda message: None)
    assert world.ended[key] == FetchFailed(*key, 0, "unknown")
    assert world.sent_stats.dropped["forged"] > 0
    assert world.sent_stats.bytes_sent == 0


def test_other_hashes_than_the_exporter_has_fail_both_sides() -> None:
    world = World()
    key = request_id(0), 0
    world.offer(key)
    world.publish(key, NUM_BLOCKS)
    world.fetched[key] = 0
    world.imports.fetch(key, TestTicket(*key), 0, b"".join(block_hashes(1, NUM_BLOCKS)))
    world.grant(key, NUM_BLOCKS)
    carry(world, lambda message: None)
    assert world.ended[key] == FetchFailed(*key, 0, "hash")
    assert world.sent_stats.integrity_failures == {"hash": 1}
    assert world.sent_stats.bytes_sent == 0
    world.check_nothing_left()


def test_a_prompt_of_another_length_is_not_taken() -> None:
    world = World()
    key = request_id(0), 0
    world.offer(key)
    world.publish(key, 3)
    world.exports.finish(key, META)
    world.fetch(key, 0)
    world.grant(key, NUM_BLOCKS)
    carry(world, lambda message: None)
    assert world.ended[key] == FetchFailed(*key, 3, "length") or world.ended[key].num_blocks == 0
    world.check_nothing_left()


def test_a_second_importer_with_the_same_ticket_is_told_so() -> None:
    world = World()
    key = start(world, num_blocks=2)
    carry(world, lambda message: None, rounds=2)
    world.exports.receive(b"another peer", [wire.seal(wire.Fetch(*key, LAYOUT, 0, 7, b""), SECRET)])
    peer, header = world.exports.replies.pop()
    assert peer == b"another peer"
    assert wire.parse(header, wire.TO_IMPORTER)[0] == wire.Fail(*key, "taken")


def test_parked_fetches_are_bounded() -> None:
    world = World()
    fetch = [wire.seal(wire.Fetch(request_id(n), 0, LAYOUT, 0, 0, b""), SECRET) for n in range(2000)]
    for header in fetch:
        world.exports.receive(PEER, [header])
    assert world.sent_stats.dropped["parked_full"] == 2000 - MAX_PARKED
    large = [wire.Fetch(request_id(n), 1, LAYOUT, 0, 0, bytes(1 << 20)) for n in range(100)]
    world = World()
    for message in large:
        world.exports.receive(PEER, [wire.seal(message, SECRET)])
    assert world.sent_stats.dropped["parked_full"] >= 100 - (MAX_PARKED_NBYTES >> 20)
    world.clock.now += CONFIG.park_s + 1
    world.sweep()
    assert not world.exports._parked
    assert world.exports._parked._nbytes == 0


def importer_message(key: wire.Key, name: str, payload_of: World) -> tuple[Any, list[bytes]]:
    """Make a message that would be right, and its payload."""
    hashes = block_hashes(0, NUM_BLOCKS)
    block = payload_of.content(key)[0].tobytes()
    return {
        "blocks": (wire.Blocks(*key, LAYOUT, 0, hashes[0], wire.checksum(block)), [block]),
        "state": (wire.State(*key, 7, 7), []),
        "end": (wire.End(*key, 7, 0.0, b"a token of somebody else's"), []),
        "fail": (wire.Fail(*key, "expired"), []),
        "other hash": (wire.Blocks(*key, LAYOUT, 0, hashes[1], wire.checksum(block)), [block]),
        "other layout": (wire.Blocks(*key, "other", 0, hashes[0], wire.checksum(block)), [block]),
        "over credit": (wire.Blocks(*key, LAYOUT, 1, hashes[1], wire.checksum(block)), [block]),
        "other length": (wire.End(*key, 6, 0.0, META), []),
    }[name]


def open_fetch() -> tuple[World, wire.Key]:
    world = World()
    key = request_id(0), 0
    world.fetch(key, 0)
    world.grant(key, 1)
    return world, key


@pytest.mark.parametrize("name", ["blocks", "state", "end", "fail"])
def test_an_importer_takes_no_word_from_who_lacks_the_secret(name: str) -> None:
    world, key = open_fetch()
    message, payload = importer_message(key, name, world)
    world.imports.receive(TestTicket(b"").source, [wire.seal(message, b"t" * 16), *payload])
    assert world.got_stats.dropped == {"forged": 1}
    assert not world.imports.events
    world.imports.receive("host:x;tcp://another:1", [wire.seal(message, SECRET), *payload])
    assert world.got_stats.dropped == {"forged": 1, "stranger": 1}
    assert (world.importer_memory.bytes == POISON).all()


@pytest.mark.parametrize(
    ("name", "reason"), [("other hash", "hash"), ("other layout", "layout"), ("other length", "length")]
)
def test_an_importer_takes_nothing_it_did_not_ask_for(name: str, reason: str) -> None:
    world, key = open_fetch()
    message, payload = importer_message(key, name, world)
    world.imports.receive(TestTicket(b"").source, [wire.seal(message, SECRET), *payload])
    world.take_events()
    assert world.ended[key] == FetchFailed(*key, 0, reason)
    assert world.got_stats.integrity_failures == {reason: 1}
    assert world.imports.num_open == 0


def test_an_importer_writes_nowhere_without_credit() -> None:
    world, key = open_fetch()
    message, payload = importer_message(key, "over credit", world)
    world.imports.receive(TestTicket(b"").source, [wire.seal(message, SECRET), *payload])
    world.importer_memory.work()
    assert world.got_stats.dropped == {"over_credit": 1}
    assert (world.importer_memory.bytes == POISON).all()
