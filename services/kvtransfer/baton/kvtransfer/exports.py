"""The exporter's protocol: what is offered, who fetches it, what may be sent now. No sockets, no threads.

A ticket is offered before its prompt is computed. A FETCH with the right secret attaches its sender, the only peer that
the ticket serves. Blocks are sent as they are published, as far as credits reach, in turn with other exports; END
follows the last. The lease runs until the end, renewed by every authentic message of the peer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial

from baton.kvtransfer import wire
from baton.kvtransfer.epochs import Epochs
from baton.kvtransfer.lease import LeaseBook
from baton.kvtransfer.memory import Stage
from baton.kvtransfer.parked import ParkedFetches
from baton.kvtransfer.side import Side
from baton.kvtransfer.waiting import nap_s
from baton.kvtransfer.wire import DIGEST_NBYTES, Key, Reads

STAGES_AHEAD = 4
"""Batches of one export that are staged before the first is sent: some copy while one waits for the socket."""
BUSY_S = 0.002
"""Until a peer that was full is asked again; most sends that end wake by themselves."""


@dataclass(frozen=True, slots=True)
class Released:
    """The blocks of a ticket are no longer read: free them. Comes exactly once for each ticket offered."""

    request_id: bytes
    epoch: int
    reason: str
    """fetched, expired, cancelled, or failed"""


@dataclass(slots=True, eq=False)
class Batch:
    """One message for the sockets: BLOCKS with its payload, or END with none."""

    key: Key
    peer: bytes
    first_block: int
    num_blocks: int
    stage: Stage
    since: float = 0.0
    """When it was staged."""


class State(Enum):
    """Where an export stands.

      offer              FETCH, right secret
    ─────────> OFFERED ──────────────────────> ATTACHED
                  │  withdrawn, expired            │  DONE, CANCEL, withdrawn, expired, other blocks than asked for
                  └────────────> ENDING <──────────┘
                                   │  sockets and copies read its blocks no more
                                   v
                                Released
    """

    OFFERED = auto()
    ATTACHED = auto()
    ENDING = auto()


@dataclass(slots=True, eq=False)
class _Export:
    key: Key
    secret: bytes
    state: State = State.OFFERED
    block_ids: list[int] = field(default_factory=list)
    hashes: bytearray = field(default_factory=bytearray)
    num_ahead: int = 0
    """Tokens that are computed until its prompt is whole, as far as is known."""
    ready_at: float = 0.0
    """When that will be, if it is known."""
    meta: bytes | None = None
    finished_at: float = 0.0
    peer: bytes = b""
    wanted: bytes = b""
    from_block: int = 0
    reads: Reads = Reads.NOTHING
    num_peer_read: int = 0
    """Blocks that the peer has read from the ring."""
    limit: int = 0
    num_staged: int = 0
    num_sent: int = 0
    num_read: int = 0
    """Batches that the sockets, or a staging copy, still read."""
    staged: deque[Batch] = field(default_factory=deque)
    end_sent: bool = False
    """Whether END need not be sent again, as far as is known."""
    has_ended: bool = False
    """Whether it was sent at all: only then can all have landed."""
    reason: str = ""
    """Why it is ending."""

    @property
    def num_held(self) -> int:
        """Batches in the ring that the peer has not read: no peer shall have all of it."""
        return self.num_read if self.reads is Reads.RING else 0

    @property
    def total(self) -> int:
        """Blocks of the prompt, as the importer counts them."""
        return self.from_block + len(self.wanted) // DIGEST_NBYTES


class Exports:
    """All exports of one worker. Owned by one thread.

    Large because it is one state machine: a method for each message, each word of the leg, the sockets, and time.
    """

    def __init__(self, side: Side) -> None:
        self._side = side
        self._memory = side.memory
        self._clock = side.clock
        self._exports: dict[Key, _Export] = {}
        self._epochs = Epochs(side.clock)
        self._leases: LeaseBook[Key] = LeaseBook(side.config.lease_s, side.clock)
        self._parked = ParkedFetches(side.config.park_s, side.config.lease_s, side.clock)
        self.looked_at = side.clock()
        """The tickets of all that came to the leg before are offered."""
        self._turns: dict[_Export, None] = {}
        """Exports that may have something to send, in turn."""
        self._staging_since: float | None = None
        """Since when the memory has been making blocks readable for which a peer waits."""
        self._read: list[tuple[_Export, Stage, Callable[[], bool]]] = []
        """What the sockets, or a staging copy, still read, and how to ask whether they are done."""
        nbytes = {
            Reads.NOTHING: side.config.message_nbytes,
            Reads.BLOCKS: side.memory.place_nbytes,
            Reads.RING: side.memory.ring_nbytes,
        }
        self._batch_blocks = {
            reads: _blocks_within(most, side.memory.block_nbytes) for reads, most in nbytes.items() if most
        }
        self.replies: deque[tuple[bytes, bytes]] = deque()
        """Headers to send, by peer. Each may be lost: the peer asks again."""
        self.events: deque[Released] = deque()

    @property
    def num_open(self) -> int:
        """Exports that are not released yet."""
        return len(self._exports)

    # What the leg says

    def offer(self, key: Key, secret: bytes) -> None:
        """Begin to serve a ticket; close the request's older epochs."""
        self.withdraw(key[0], key[1] - 1)
        export = self._exports[key] = _Export(key, secret)
        if not self._epochs.open(key):
            self._end(export, "cancelled")
            return
        self._leases.renew(key)
        for peer, header in self._parked.take(key):
            self.receive(peer, [header])

    def publish(self, key: Key, block_ids: Sequence[int], hashes: bytes) -> None:
        """Add the next blocks of a prompt, computed and whole; they must not change until released."""
        export = self._exports.get(key)
        if export is not None:
            export.block_ids += block_ids
            export.hashes += hashes
            self._take_turn(export)

    def foretell(self, key: Key, num_ahead: int, seconds: float) -> None:
        """Note when a prompt will be whole."""
        export = self._exports.get(key)
        if export is not None:
            export.num_ahead, export.ready_at = num_ahead, self._clock() + seconds if seconds else 0.0

    def finish(self, key: Key, meta: bytes, at: float | None = None) -> None:
        """The last block is published, `at` that time, or now; `meta` is for the other leg."""
        export = self._exports.get(key)
        if export is not None and export.meta is None:
            export.meta, export.finished_at = meta, self._clock() if at is None else at
            self._take_turn(export)

    def withdraw(self, request_id: bytes, epoch: int) -> None:
        """Close an epoch of a request and all before it."""
        for key, export in list(self._exports.items()):
            if key[0] == request_id and key[1] <= epoch:
                self._end(export, "cancelled", tell="cancelled")

    def close(self) -> None:
        """Close all exports; `sweep` until none is open."""
        for export in list(self._exports.values()):
            self._end(export, "cancelled", tell="closed")

    # What peers say

    def receive(self, peer: bytes, frames: Sequence[wire.Buffer]) -> None:
        """Act on one message; a bad one is counted and does nothing."""
        try:
            self._act(peer, frames)
        except wire.BadFrame as bad:
            self._side.stats.dropped[bad.reason] += 1

    def _act(self, peer: bytes, frames: Sequence[wire.Buffer]) -> None:
        if len(frames) != 1:
            raise wire.BadFrame("garbage", "a message to an exporter has one frame")
        message, sealed = wire.parse(frames[0], wire.TO_EXPORTER)
        if isinstance(message, wire.Hello):
            if not sealed.is_authentic(b""):
                raise wire.BadFrame("garbage", "damaged HELLO")
            self._reply(peer, wire.Welcome(wire.VERSION, self._side.incarnation, self._side.layout), b"")
            return
        key = message.request_id, message.epoch
        export = self._exports.get(key)
        if export is None:
            self._on_unknown(key, peer, message, bytes(frames[0]))
        elif not sealed.is_authentic(export.secret):
            raise wire.BadFrame("forged")
        elif isinstance(message, wire.Fetch):
            self._on_fetch(export, peer, message)
        elif peer != export.peer and not (isinstance(message, wire.Cancel) and not export.peer):
            raise wire.BadFrame("stranger", "the right secret, but another peer has the ticket")
        elif isinstance(message, wire.Credit):
            self._on_credit(export, message)
        else:
            self._end(export, "fetched" if isinstance(message, wire.Done) and export.has_ended else "cancelled")

    def _on_unknown(self, key: Key, peer: bytes, message: wire.OfTicket, header: bytes) -> None:
        reason = self._epochs.why_unknown(key)
        if isinstance(message, wire.Cancel) and self._parked.cancel(key, peer):
            return
        if isinstance(message, wire.Fetch) and reason == "stranger":
            if not self._parked.add(key, peer, header):
                raise wire.BadFrame("parked_full")
            return
        if isinstance(message, wire.Fetch | wire.Credit):
            self._reply(peer, wire.Fail(*key, "unknown"), b"")
        raise wire.BadFrame(reason)

    def _on_fetch(self, export: _Export, peer: bytes, fetch: wire.Fetch) -> None:
        if export.peer not in (b"", peer):
            self._reply(peer, wire.Fail(*export.key, "taken"), export.secret)
            raise wire.BadFrame("stranger")
        if export.state is State.OFFERED:
            export.state = State.ATTACHED
            export.peer, export.wanted, export.from_block = peer, fetch.hashes, fetch.from_block
            export.num_staged = export.num_sent = export.num_peer_read = fetch.from_block
            export.reads = fetch.reads if fetch.reads in self._batch_blocks else Reads.NOTHING
        if export.state is State.ATTACHED and fetch.layout != self._side.layout:
            self._fail(export, "layout")
        else:
            self._on_credit(export, wire.Credit(*export.key, fetch.limit))

    def _on_credit(self, export: _Export, credit: wire.Credit) -> None:
        if export.state is State.ENDING:
            self._reply(export.peer, wire.Fail(*export.key, export.reason), export.secret)
            return
        self._leases.renew(export.key)
        export.limit = max(export.limit, min(credit.limit, export.total))
        if credit.num_read > export.num_peer_read:  # says that, and asks for nothing
            export.num_peer_read = credit.num_read
            self._take_turn(export)
            return
        export.end_sent = False  # who still asks has not had END, or will drop a second one
        self._reply(export.peer, self._state(export), export.secret)
        self._take_turn(export)

    def _state(self, export: _Export) -> wire.State:
        num_computed = min(len(export.block_ids), wire.MAX_BLOCKS)
        if export.meta is not None:
            return wire.State(*export.key, num_computed, export.num_sent)
        ready_s = min(1e6, max(0.0, export.ready_at - self._clock()))
        return wire.State(*export.key, num_computed, export.num_sent, export.num_ahead, ready_s)

    # What the sockets ask

    def ready_batches(self) -> Iterator[Batch]:
        """Yield at most one message of each export that has one, in turn.

        Before the next, `take` what a socket takes; what none takes now comes again.
        """
        self._staging_since = None
        for export in list(self._turns):
            del self._turns[export]
            if export.state is State.ENDING:
                continue
            has_room = self._stage(export)
            if not has_room or export.staged:
                self._take_turn(export)
            if export.staged:
                first = export.staged[0]
                if first.stage.is_ready():
                    yield first
                else:
                    self._staging_since = max(self._staging_since or 0.0, first.since)
            elif self._may_end(export):
                yield Batch(export.key, export.peer, export.total, 0, Stage((), 0))
                if not export.end_sent:
                    self._take_turn(export)

    def take(self, batch: Batch, is_read: Callable[[], bool]) -> tuple[bytes, Sequence[memoryview]]:
        """Return the header and the payload of a batch that a socket has begun to take.

        `is_read` will tell whether the sockets are done with the payload.
        """
        export = self._exports[batch.key]
        if not batch.num_blocks:
            assert export.meta is not None
            export.end_sent = export.has_ended = True
            age_s = min(1e6, max(0.0, self._clock() - export.finished_at))
            return wire.seal(wire.End(*export.key, export.total, age_s, export.meta), export.secret), ()
        first, stop = batch.first_block, batch.first_block + batch.num_blocks
        export.staged.popleft()
        export.num_sent = stop
        self._side.stats.bytes_sent += batch.num_blocks * self._memory.block_nbytes
        if export.reads is Reads.RING:
            is_read = partial(_is_read_or_ending, export, stop)
        self._watch(export, batch.stage, is_read)
        hashes = bytes(export.hashes[first * DIGEST_NBYTES : stop * DIGEST_NBYTES])
        checksums, payload = batch.stage.read()
        places = b""
        if export.reads is not Reads.NOTHING:
            places, payload = wire.join_places(batch.stage.places or export.block_ids[first:stop]), ()
        message = wire.Blocks(*export.key, self._side.layout, first, hashes, checksums, places)
        return wire.seal(message, export.secret), payload

    def sweep(self) -> None:
        """End what has expired; release what is no longer read."""
        for key in self._leases.sweep():
            self._end(self._exports[key], "expired", tell="expired")
        for key, peer in self._parked.sweep(self.looked_at):
            self._side.stats.dropped["never_offered"] += 1
            self._reply(peer, wire.Fail(*key, "unknown"), b"")
        self._epochs.sweep()
        watched, self._read = self._read, []
        for export, stage, is_read in watched:
            if is_read():
                stage.release()
                export.num_read -= 1
                self._release_if_done(export)
            else:
                self._read.append((export, stage, is_read))

    def seconds_to_sweep(self) -> float:
        """Seconds that the next turn can wait, if nothing happens."""
        if self._staging_since is not None:
            return nap_s(self._clock() - self._staging_since)
        if self._read or self._turns:
            return BUSY_S
        return min(1.0, self._leases.seconds_left(), self._parked.seconds_left())

    # Inside

    def _stage(self, export: _Export) -> bool:
        """Stage what credits allow; False: the memory has no room now."""
        while len(export.staged) + export.num_held < STAGES_AHEAD:
            first = export.num_staged
            stop = min(len(export.block_ids), export.limit, first + self._batch_blocks[export.reads])
            if stop <= first:
                return True
            span = slice(first * DIGEST_NBYTES, stop * DIGEST_NBYTES)
            skip = export.from_block * DIGEST_NBYTES
            if export.hashes[span] != export.wanted[span.start - skip : span.stop - skip]:
                self._fail(export, "hash")
                return True
            block_ids = export.block_ids[first:stop]
            stage = self._make_stage(export.reads, block_ids)
            if stage is None:
                return False
            export.staged.append(Batch(export.key, export.peer, first, stop - first, stage, self._clock()))
            export.num_staged = stop
            if export.staged[0].stage.is_ready():
                return True  # is sent first: its peer waits for nothing else
        return True

    def _make_stage(self, reads: Reads, block_ids: Sequence[int]) -> Stage | None:
        if reads is Reads.BLOCKS:
            return self._memory.stage_in_place(block_ids)
        return self._memory.stage(block_ids) if reads is Reads.NOTHING else self._memory.stage_in_ring(block_ids)

    def _may_end(self, export: _Export) -> bool:
        if export.state is State.ENDING or export.meta is None or export.end_sent:
            return False
        if export.total != len(export.block_ids):
            self._fail(export, "length")
            return False
        return export.num_sent == export.total

    def _take_turn(self, export: _Export) -> None:
        if export.state is State.ATTACHED:
            self._turns[export] = None

    def _watch(self, export: _Export, stage: Stage, is_read: Callable[[], bool]) -> None:
        export.num_read += 1
        self._read.append((export, stage, is_read))

    def _fail(self, export: _Export, kind: str) -> None:
        """End an export whose blocks are not what the peer asked for."""
        self._side.stats.integrity_failures[kind] += 1
        self._end(export, "failed", tell=kind)

    def _end(self, export: _Export, reason: str, *, tell: str = "") -> None:
        """Send nothing more; release now, or when the sockets are done."""
        if export.state is State.ENDING:
            return
        export.state, export.reason = State.ENDING, reason
        self._leases.end(export.key)
        if tell and export.peer:
            self._reply(export.peer, wire.Fail(*export.key, tell), export.secret)
        while export.staged:  # a copy that has begun cannot be called back
            stage = export.staged.popleft().stage
            self._watch(export, stage, stage.is_ready)
        self._release_if_done(export)

    def _release_if_done(self, export: _Export) -> None:
        if export.state is not State.ENDING or export.num_read:
            return
        del self._exports[export.key]
        self._epochs.end(export.key)
        self._side.stats.releases[export.reason] += 1
        self.events.append(Released(*export.key, export.reason))

    def _reply(self, peer: bytes, message: wire.ToImporter, secret: bytes) -> None:
        self.replies.append((peer, wire.seal(message, secret)))


def _is_read_or_ending(export: _Export, stop: int) -> bool:
    """Whether a peer has read the ring's blocks below `stop`, or shall not: its checksums show what it reads too late."""
    return export.num_peer_read >= stop or export.state is State.ENDING


def _blocks_within(nbytes: int, block_nbytes: int) -> int:
    """Blocks of a message of `nbytes`: at least one, at most what the format has room for."""
    return max(1, min(wire.MAX_BATCH_BLOCKS, nbytes // block_nbytes))
