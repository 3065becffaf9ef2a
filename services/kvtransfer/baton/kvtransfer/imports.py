"""The importer's protocol: what is fetched, from whom, what has landed. No sockets, no threads.

A deadline here measures silence, never work: an exporter that answers pings may take as long as it likes, to compute
and also to hear of the ticket. It says itself when it knows none; and who asked cancels when its request is over, its
deadline has passed, or its router is gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from baton.kvtransfer import wire
from baton.kvtransfer.epochs import Epochs
from baton.kvtransfer.memory import Landing, PeerMemory
from baton.kvtransfer.side import Side
from baton.kvtransfer.waiting import nap_s
from baton.kvtransfer.wire import DIGEST_NBYTES, Key, Reads, Ticket, digests

LANDED_BLOCKS = 64
"""Between two words of progress, unless nothing more is granted: each wakes the engine's thread."""


@dataclass(frozen=True, slots=True)
class Landed:
    """So many of the wanted blocks, from the first without a gap, are verified and in place."""

    request_id: bytes
    epoch: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """All wanted blocks are in place. `meta` is what the other leg gave to `finish`."""

    request_id: bytes
    epoch: int
    num_blocks: int
    meta: bytes
    incarnation: str
    """Of the worker that they came from."""
    seconds: float
    """From the first block to the last."""
    exposed_s: float
    """Of the wait, the part after the prompt was computed."""


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """No more will come; the first `num_blocks` wanted blocks are good, what follows must be computed."""

    request_id: bytes
    epoch: int
    num_blocks: int
    reason: str
    """cancelled, silent, unreachable, restarted, lost, layout, checksum, hash, size, length, or the exporter's
    own words"""


Event = Landed | Fetched | FetchFailed


class State(Enum):
    """Where an import stands. `Fetched` and `FetchFailed` are its last: then nothing writes into its blocks.

      fetch: FETCH, repeated      any answer
    ────────────────────> ASKING ───────────> ATTACHED ──────────────────> Fetched
                            │                    │      END, and all wanted blocks in place
                            │                    │  cancelled, silent, lost, or a block that is not what was asked for
                            └─────> FAILED <─────┘
                                      │  what was taken over is in place
                                      v
                                  FetchFailed
    """

    ASKING = auto()
    ATTACHED = auto()
    FAILED = auto()


@dataclass(slots=True, eq=False)
class _Peer:
    """An exporter to fetch from."""

    heard_at: float
    ping_at: float
    incarnation: str = ""
    """What its WELCOME said; none came yet: empty."""


@dataclass(frozen=True, slots=True)
class _Arrival:
    """Wanted blocks that the memory has taken over, and what their sums must be."""

    blocks: list[int]
    checksums: list[bytes]
    landing: Landing
    since: float


@dataclass(slots=True, eq=False)
class _Import:
    key: Key
    ticket: Ticket
    from_block: int
    hashes: bytes
    peer_memory: PeerMemory | None
    """The exporter's memory, if it is read here."""
    started_at: float
    state: State = State.ASKING
    block_ids: list[int] = field(default_factory=list)
    is_taken: bytearray = field(default_factory=bytearray)
    """1 for each wanted block of which the memory has the bytes."""
    is_good: bytearray = field(default_factory=bytearray)
    """1 for each that is in place and verified."""
    num_landed: int = 0
    """Blocks, from the first without a gap, that are good."""
    num_told: int = 0
    """Blocks that the last `Landed` counted."""
    arrivals: deque[_Arrival] = field(default_factory=deque)
    """What the memory still works on."""
    told_limit: int = 0
    renew_at: float = 0.0
    num_ahead: int = 0
    """Tokens that the exporter computes until the prompt is whole, as it said last."""
    ready_at: float = 0.0
    """When that will be, if it said so."""
    end: wire.End | None = None
    computed_at: float = 0.0
    first_block_at: float | None = None
    last_block_at: float = 0.0
    owed_since: float | None = None
    """Since when blocks that the exporter has sent are missing, and none came."""
    failure: str = ""

    @property
    def num_wanted(self) -> int:
        return len(self.is_taken)

    @property
    def reads(self) -> Reads:
        return Reads.NOTHING if self.peer_memory is None else self.peer_memory.reads

    @property
    def limit(self) -> int:
        return self.from_block + len(self.block_ids)


class Imports:
    """All imports of one worker. Owned by one thread.

    Large because it is one state machine: a method for each message, each word of the leg, and time.
    """

    def __init__(self, side: Side) -> None:
        self._side = side
        self._memory = side.memory
        self._config = config = side.config
        self._clock = side.clock
        self._hello = wire.seal(wire.Hello(wire.VERSION, side.incarnation, side.layout))
        self._imports: dict[Key, _Import] = {}
        self._epochs = Epochs(side.clock)
        self._peers: dict[str, _Peer] = {}
        self._sweep_at = 0.0
        self._step_s = min(config.renew_s, config.silence_s / 3) / 4
        self.requests: deque[tuple[str, bytes]] = deque()
        """Headers to send, by exporter. Each may be lost: it is repeated."""
        self.events: deque[Event] = deque()

    @property
    def num_open(self) -> int:
        """Imports that have not ended."""
        return len(self._imports)

    # What the leg says

    def fetch(
        self,
        key: Key,
        ticket: Ticket,
        from_block: int,
        hashes: bytes,
        block_ids: Sequence[int] = (),
        peer_memory: PeerMemory | None = None,
    ) -> None:
        """Ask for the blocks with these hashes; the first is block `from_block` of the prompt.

        `peer_memory` is the exporter's, if it can be read here.
        """
        now = self._clock()
        peer = self._peers.setdefault(ticket.source, _Peer(heard_at=now, ping_at=now))
        it = self._imports[key] = _Import(key, ticket, from_block, hashes, peer_memory, started_at=now)
        it.is_taken, it.is_good = bytearray(len(hashes) // DIGEST_NBYTES), bytearray(len(hashes) // DIGEST_NBYTES)
        self._epochs.open(key)
        if ticket.layout != self._side.layout:
            self._spoil(it, "layout")
            return
        self.grant(key, block_ids)
        if ticket.source_incarnation != peer.incarnation:
            self._ping(ticket.source, peer)
        self._ask(it)

    def grant(self, key: Key, block_ids: Sequence[int]) -> None:
        """Let the next wanted blocks land in these places."""
        it = self._imports.get(key)
        if it is None or it.state is State.FAILED:
            return
        it.block_ids += block_ids[: it.num_wanted - len(it.block_ids)]
        if it.state is State.ATTACHED:
            self._ask(it)

    def cancel(self, key: Key) -> None:
        """Give up; ends as failed, with what is good until then."""
        it = self._imports.get(key)
        if it is not None:
            self._fail(it, "cancelled")

    def close(self) -> None:
        """Give up everything; `sweep` until nothing is open."""
        for key in list(self._imports):
            self.cancel(key)

    def lose(self, source: str) -> None:
        """Note that an exporter cannot be reached at all."""
        for it in self._imports_from(source):
            self._fail(it, "unreachable", tell=False)

    # What exporters say

    def receive(self, source: str, frames: Sequence[wire.Buffer]) -> None:
        """Act on one message; a bad one is counted and does nothing."""
        try:
            self._act(source, frames)
        except wire.BadFrame as bad:
            self._side.stats.dropped[bad.reason] += 1

    def _act(self, source: str, frames: Sequence[wire.Buffer]) -> None:
        message, sealed = wire.parse(frames[0], wire.TO_IMPORTER)
        if len(frames) > 1 and not isinstance(message, wire.Blocks):
            raise wire.BadFrame("garbage", "payload after a message that has none")
        peer = self._peers.get(source)
        if peer is not None:
            peer.heard_at = self._clock()
        if isinstance(message, wire.Welcome):
            if not sealed.is_authentic(b""):
                raise wire.BadFrame("garbage", "damaged WELCOME")
            self._on_welcome(source, message)
            return
        it = self._find(source, message, sealed)
        if it.state is State.ASKING:
            it.state = State.ATTACHED
            if it.limit > it.told_limit:
                self._ask(it)
        match message:
            case wire.Blocks():
                self._on_blocks(it, message, frames[1:])
            case wire.State():
                self._note_owed(it, message.num_sent - it.from_block)
                it.num_ahead = message.num_ahead
                it.ready_at = self._clock() + message.ready_s if message.ready_s else 0.0
            case wire.End():
                self._on_end(it, message)
            case wire.Fail():
                reason = message.reason if sealed.is_authentic(it.ticket.secret) else "unknown"
                self._fail(it, reason, tell=False)

    def _find(self, source: str, message: wire.OfTicket, sealed: wire.Sealed) -> _Import:
        key = message.request_id, message.epoch
        it = self._imports.get(key)
        if it is None or it.state is State.FAILED:
            raise wire.BadFrame("late" if it else self._epochs.why_unknown(key))
        if it.ticket.source != source:
            raise wire.BadFrame("stranger", "the ticket is another exporter's")
        # An exporter that knows no ticket has no secret to seal with. What it says can cost a transfer, never content.
        unknown = isinstance(message, wire.Fail) and sealed.is_authentic(b"")
        if not unknown and not sealed.is_authentic(it.ticket.secret):
            raise wire.BadFrame("forged")
        return it

    def _on_welcome(self, source: str, welcome: wire.Welcome) -> None:
        if source in self._peers:
            self._peers[source].incarnation = welcome.incarnation
        for it in self._imports_from(source):
            if welcome.version != wire.VERSION or welcome.layout != self._side.layout:
                self._spoil(it, "layout")
            elif welcome.incarnation != it.ticket.source_incarnation:
                self._fail(it, "restarted", tell=False)

    def _on_blocks(self, it: _Import, message: wire.Blocks, payload: Sequence[wire.Buffer]) -> None:
        first, num_blocks = message.first_block - it.from_block, message.num_blocks
        if first < 0 or first + num_blocks > len(it.block_ids):
            raise wire.BadFrame("over_credit")
        if message.layout != self._side.layout:
            self._spoil(it, "layout")
            return
        if message.hashes != it.hashes[first * DIGEST_NBYTES : (first + num_blocks) * DIGEST_NBYTES]:
            self._spoil(it, "hash")
            return
        new = [at for at in range(num_blocks) if not it.is_taken[first + at]]
        if not new:
            raise wire.BadFrame("duplicate")
        try:
            landing = self._land(it, message, [it.block_ids[first + at] for at in new], new, payload)
        except wire.BadFrame:
            self._spoil(it, "size")
            return
        checksums = digests(message.checksums)
        it.arrivals.append(_Arrival([first + at for at in new], [checksums[at] for at in new], landing, self._clock()))
        for at in new:
            it.is_taken[first + at] = 1
        if it.owed_since is not None:
            it.owed_since = self._clock()
        self._advance(it)

    def _land(
        self, it: _Import, message: wire.Blocks, block_ids: list[int], new: list[int], payload: Sequence[wire.Buffer]
    ) -> Landing:
        """Have the memory take over the new ones of a message's blocks."""
        nbytes = self._memory.block_nbytes
        if message.places and it.peer_memory is not None and not payload:
            places = wire.read_places(message.places, it.peer_memory.nbytes // nbytes)
            return self._memory.land_from(it.peer_memory, [places[at] for at in new], block_ids)
        blocks = wire.split_payload(message.num_blocks, nbytes, payload)
        return self._memory.land(block_ids, [blocks[at] for at in new])

    def _check(self, it: _Import, arrival: _Arrival) -> bool:
        """Count the good ones of blocks that are in place; False: one is not."""
        sums = digests(arrival.landing.checksums())
        good = [at for at, got, told in zip(arrival.blocks, sums, arrival.checksums, strict=True) if got == told]
        for at in good:
            it.is_good[at] = 1
        self._side.stats.bytes_received += len(good) * self._memory.block_nbytes
        it.last_block_at = self._clock()
        if it.first_block_at is None:
            it.first_block_at = it.last_block_at
        return len(good) == len(sums)

    def _on_end(self, it: _Import, end: wire.End) -> None:
        if end.num_blocks != it.from_block + it.num_wanted:
            self._spoil(it, "length")
            return
        if it.end is None:
            it.end = end
            it.computed_at = self._clock() - end.age_s
        self._note_owed(it, it.num_wanted)
        self._advance(it)

    # Time

    def sweep(self) -> None:
        """Renew what is wanted, end what is lost, count what has landed.

        Read every socket at least once between two sweeps, or an exporter that was not heard out is taken for silent.
        """
        for it in self._landing():
            self._advance(it)
        now = self._clock()
        if now < self._sweep_at:
            return
        self._sweep_at = now + self._step_s
        for source, peer in list(self._peers.items()):
            if now - peer.heard_at > self._config.silence_s:
                for it in self._imports_from(source):
                    self._fail(it, "silent")
            elif now >= peer.ping_at:
                self._ping(source, peer)
        for it in list(self._imports.values()):
            if it.state is State.FAILED:
                continue
            if it.owed_since is not None and now - it.owed_since > self._config.stall_s:
                self._fail(it, "lost")
            elif now >= it.renew_at:
                self._ask(it)
        self._epochs.sweep()
        self._count_queued(now)

    def seconds_to_sweep(self) -> float:
        """Seconds that the next turn can wait, if nothing happens."""
        landing = self._landing()
        if landing:
            now = self._clock()
            return min(nap_s(now - it.arrivals[0].since) for it in landing)
        return max(0.0, self._sweep_at - self._clock()) if self._imports else 1.0

    # Inside

    def _imports_from(self, source: str) -> list[_Import]:
        return [it for it in self._imports.values() if it.ticket.source == source]

    def is_landing_from(self, source: str) -> bool:
        """Whether the memory still works on blocks of this exporter."""
        return any(it.arrivals for it in self._imports_from(source))

    def _landing(self) -> list[_Import]:
        """Imports for which the memory still works on blocks that were taken over."""
        return [it for it in self._imports.values() if it.arrivals]

    def _count_queued(self, now: float) -> None:
        """Count what is still to be computed where it is fetched from."""
        queued = [it for it in self._imports.values() if it.num_ahead and it.end is None]
        self._side.stats.fetches_queued = len(queued)
        self._side.stats.longest_queued_s = max((it.ready_at - now for it in queued if it.ready_at > now), default=0.0)

    def _note_owed(self, it: _Import, num_sent: int) -> None:
        if num_sent <= it.is_taken.count(1):
            it.owed_since = None
        elif it.owed_since is None:
            it.owed_since = self._clock()

    def _advance(self, it: _Import) -> None:
        """Count what is in place, and end the import when that is all."""
        is_all_good = True
        while it.arrivals and it.arrivals[0].landing.is_ready():
            is_all_good &= self._check(it, it.arrivals.popleft())
        num_before = it.num_landed
        while it.num_landed < it.num_wanted and it.is_good[it.num_landed]:
            it.num_landed += 1
        if it.reads is Reads.RING and it.state is State.ATTACHED and num_before < it.num_landed < it.num_wanted:
            self._ask(it)  # tells the exporter that there is room in its ring again
        if not is_all_good and it.state is not State.FAILED:
            self._spoil(it, "checksum")
            return
        if it.state is State.FAILED:
            if not it.arrivals:
                self._close(it, FetchFailed(*it.key, it.num_landed, it.failure), it.failure)
            return
        num_untold = it.num_landed - it.num_told
        if num_untold >= LANDED_BLOCKS or (num_untold and it.num_landed == len(it.block_ids)):
            it.num_told = it.num_landed
            self.events.append(Landed(*it.key, it.num_landed))
        if it.end is not None and it.num_landed == it.num_wanted:
            self._complete(it, it.end.meta)

    def _complete(self, it: _Import, meta: bytes) -> None:
        seconds = 0.0 if it.first_block_at is None else it.last_block_at - it.first_block_at
        exposed_s = max(0.0, self._clock() - max(it.computed_at, it.started_at))
        self._request(it, wire.Done(*it.key))
        event = Fetched(*it.key, it.num_landed, meta, it.ticket.source_incarnation, seconds, exposed_s)
        self._close(it, event, "done")

    def _spoil(self, it: _Import, kind: str) -> None:
        """End an import whose exporter is authentic but whose blocks are not what was asked for."""
        self._side.stats.integrity_failures[kind] += 1
        self._fail(it, kind)

    def _fail(self, it: _Import, reason: str, *, tell: bool = True) -> None:
        if it.state is State.FAILED:
            return
        it.state, it.failure = State.FAILED, reason
        if tell:
            self._request(it, wire.Cancel(*it.key))
        self._advance(it)

    def _close(self, it: _Import, event: Event, outcome: str) -> None:
        del self._imports[it.key]
        self._epochs.end(it.key)
        if not self._imports_from(it.ticket.source):
            del self._peers[it.ticket.source]
        self._side.stats.fetches[outcome] += 1
        self.events.append(event)

    def _ask(self, it: _Import) -> None:
        """Send FETCH until it is answered, and CREDIT from then on."""
        it.renew_at = self._clock() + self._config.renew_s
        it.told_limit = it.limit
        if it.state is State.ATTACHED:
            num_read = it.from_block + it.num_landed if it.reads is Reads.RING else 0
            self._request(it, wire.Credit(*it.key, it.limit, num_read))
        else:
            fetch = wire.Fetch(*it.key, self._side.layout, it.from_block, it.limit, it.hashes, it.reads)
            self._request(it, fetch)

    def _ping(self, source: str, peer: _Peer) -> None:
        peer.ping_at = self._clock() + self._config.silence_s / 3
        self.requests.append((source, self._hello))

    def _request(self, it: _Import, message: wire.ToExporter) -> None:
        self.requests.append((it.ticket.source, wire.seal(message, it.ticket.secret)))
