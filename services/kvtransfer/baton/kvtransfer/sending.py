"""The source's side of the protocol: what is offered, who fetches it, what may be sent now. No sockets, no threads.

The life of an offer
    offered     told of before its prompt is computed; a FETCH that came earlier was parked and is taken up now
    attached    a FETCH with the right secret came; its sender is the only peer that this ticket serves
    published   blocks are computed: sent as far as credits reach, in turn with the other offers
    finished    the prompt is computed: END follows the last block
    ending      fetched, expired, cancelled or failed: nothing more is sent
    released    and nothing reads the blocks any more: the one event that says they may be overwritten

From offered to ending the lease runs, renewed by every authentic message of the peer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from baton.kvtransfer import wire
from baton.kvtransfer.epochs import Epochs
from baton.kvtransfer.lease import LeaseBook
from baton.kvtransfer.memory import BlockMemory, InPlace, Stage
from baton.kvtransfer.settings import MIB, TransferConfig, TransferStats
from baton.kvtransfer.wire import DIGEST_NBYTES, Key

STAGES_AHEAD = 2
"""Batches of one offer that are staged before the first is sent: one copies while one waits for the socket."""
PLACED_NBYTES = 8 * MIB
"""Of one message that only says where its blocks lie: some milliseconds of the sink's work."""


@dataclass(frozen=True, slots=True)
class Released:
    """The blocks of an offer are no longer read: free them. Comes exactly once for each offer."""

    request_id: bytes
    epoch: int
    reason: str
    """fetched, expired, cancelled, or failed"""
    num_blocks_sent: int


@dataclass(slots=True, eq=False)
class Batch:
    """One message for the sockets: BLOCKS with its payload, or END with none."""

    key: Key
    peer: bytes
    first_block: int
    num_blocks: int
    stage: Stage | None
    is_read: Callable[[], bool] = lambda: True
    """Tells whether the sockets are done with the payload."""


@dataclass(slots=True, eq=False)
class _Offer:
    key: Key
    secret: bytes
    block_ids: list[int] = field(default_factory=list)
    hashes: bytearray = field(default_factory=bytearray)
    meta: bytes | None = None
    finished_at: float = 0.0
    peer: bytes | None = None
    wanted: bytes = b""
    from_block: int = 0
    by_place: bool = False
    """Whether the peer reads the blocks where they lie."""
    limit: int = 0
    num_staged: int = 0
    num_sent: int = 0
    num_read: int = 0
    """Batches that the sockets, or a staging copy, still read."""
    staged: deque[Batch] = field(default_factory=deque)
    has_turn: bool = False
    end_sent: bool = False
    ending: str | None = None

    @property
    def total(self) -> int:
        """Blocks of the prompt, as the sink counts them."""
        return self.from_block + len(self.wanted) // DIGEST_NBYTES


class SendingSide:
    """All offers of one source. Owned by one thread; the clock is given."""

    def __init__(
        self,
        memory: BlockMemory,
        layout: str,
        incarnation: str,
        config: TransferConfig,
        stats: TransferStats,
        clock: Callable[[], float],
    ) -> None:
        self._memory = memory
        self._layout = layout
        self._incarnation = incarnation
        self._config = config
        self._stats = stats
        self._clock = clock
        self._offers: dict[Key, _Offer] = {}
        self._epochs = Epochs(clock)
        self._leases: LeaseBook[Key] = LeaseBook(config.lease_s, clock)
        self._parked: dict[tuple[Key, bytes], wire.Sealed] = {}
        self._parked_nbytes = 0
        self._parked_leases: LeaseBook[tuple[Key, bytes]] = LeaseBook(config.park_s, clock)
        self._turns: deque[_Offer] = deque()
        self._read: list[Batch] = []
        self._batch_blocks = _blocks_within(config.frame_nbytes, memory.block_nbytes)
        self._placed_blocks = _blocks_within(PLACED_NBYTES, memory.block_nbytes)
        self.replies: deque[tuple[bytes, bytes]] = deque()
        """Headers to send, by peer. Each may be lost: the peer asks again."""
        self.events: deque[Released] = deque()

    @property
    def num_open(self) -> int:
        """Offers that are not released yet."""
        return len(self._offers)

    @property
    def is_busy(self) -> bool:
        """Whether something waits for the sockets or the memory, so that asking again soon is worth it."""
        return bool(self._read or self._turns)

    # What the leg says

    def offer(self, key: Key, secret: bytes) -> None:
        """Begin to serve a ticket; closes the request's older epochs."""
        request_id, epoch = key
        self._close_epochs(request_id, epoch - 1)
        offer = self._offers[key] = _Offer(key, secret)
        if not self._epochs.open(key):
            self._end(offer, "cancelled")
            return
        self._renew(offer)
        for parked_key, peer in [parked for parked in self._parked if parked[0] == key]:
            sealed = self._unpark(parked_key, peer)
            assert isinstance(sealed.message, wire.Fetch)
            self._on_fetch(offer, peer, sealed.message, sealed)

    def publish(self, key: Key, block_ids: Sequence[int], hashes: bytes) -> None:
        """Add the next blocks of a prompt, computed and whole; they must not change until released."""
        offer = self._offers.get(key)
        if offer is None:
            return
        offer.block_ids += block_ids
        offer.hashes += hashes
        self._stats.held_bytes += len(block_ids) * self._memory.block_nbytes
        self._take_turn(offer)

    def finish(self, key: Key, meta: bytes) -> None:
        """Say that the last block is published, and what the sink's leg is to know."""
        offer = self._offers.get(key)
        if offer is None or offer.meta is not None:
            return
        offer.meta, offer.finished_at = meta, self._clock()
        self._take_turn(offer)

    def withdraw(self, request_id: bytes, epoch: int) -> None:
        """Close an epoch of a request and all before it."""
        self._close_epochs(request_id, epoch)

    def close(self) -> None:
        """Close all offers; `sweep` until none is open."""
        for offer in list(self._offers.values()):
            self._end(offer, "cancelled", tell="closed")

    # What peers say

    def receive(self, peer: bytes, frames: Sequence[wire.Buffer]) -> None:
        """Act on one message; a bad one is counted and does nothing."""
        try:
            if len(frames) != 1:
                raise wire.BadFrame("garbage", "a message to a source has one frame")
            message, sealed = wire.parse(frames[0], wire.TO_SOURCE)
            if isinstance(message, wire.Hello):
                self._on_hello(peer, sealed)
                return
            key = message.request_id, message.epoch
            offer = self._offers.get(key)
            if offer is None:
                self._on_unknown(key, peer, message, sealed)
                return
            if not wire.is_authentic(sealed, offer.secret):
                raise wire.BadFrame("forged")
            if isinstance(message, wire.Fetch):
                self._on_fetch(offer, peer, message, sealed)
                return
            gives_up = isinstance(message, wire.Cancel) and offer.peer is None
            if peer != offer.peer and not gives_up:
                raise wire.BadFrame("stranger", "the right secret, but another peer has the ticket")
        except wire.BadFrame as bad:
            self._stats.dropped[bad.reason] += 1
            return
        if isinstance(message, wire.Credit):
            self._on_credit(offer, message)
        else:
            self._end(offer, "fetched" if isinstance(message, wire.Done) and offer.end_sent else "cancelled")

    def _on_hello(self, peer: bytes, sealed: wire.Sealed) -> None:
        if not wire.is_authentic(sealed, b""):
            raise wire.BadFrame("garbage", "damaged HELLO")
        self._reply(peer, wire.Welcome(wire.VERSION, self._incarnation, self._layout), b"")

    def _on_unknown(self, key: Key, peer: bytes, message: wire.OfTicket, sealed: wire.Sealed) -> None:
        reason = self._epochs.why_unknown(key)
        if isinstance(message, wire.Cancel) and (key, peer) in self._parked:
            self._unpark(key, peer)
        elif isinstance(message, wire.Fetch) and reason == "stranger":
            self._park(key, peer, sealed)
        else:
            if isinstance(message, wire.Fetch | wire.Credit):
                self._reply(peer, wire.Fail(*key, "unknown"), b"")
            raise wire.BadFrame(reason)

    def _park(self, key: Key, peer: bytes, sealed: wire.Sealed) -> None:
        if (key, peer) in self._parked:
            lease_runs = True
            self._parked_nbytes -= len(self._parked[key, peer].body)
        else:
            lease_runs = False
            if len(self._parked) >= self._config.max_parked:
                raise wire.BadFrame("parked_full")
        if self._parked_nbytes + len(sealed.body) > self._config.max_parked_nbytes:
            self._parked.pop((key, peer), None)
            self._parked_leases.end((key, peer))
            raise wire.BadFrame("parked_full")
        self._parked[key, peer] = sealed
        self._parked_nbytes += len(sealed.body)
        if not lease_runs:  # repeating a FETCH does not make it wait longer
            self._parked_leases.renew((key, peer))

    def _unpark(self, key: Key, peer: bytes) -> wire.Sealed:
        sealed = self._parked.pop((key, peer))
        self._parked_nbytes -= len(sealed.body)
        self._parked_leases.end((key, peer))
        return sealed

    def _on_fetch(self, offer: _Offer, peer: bytes, fetch: wire.Fetch, sealed: wire.Sealed) -> None:
        if not wire.is_authentic(sealed, offer.secret):
            self._stats.dropped["forged"] += 1
            return
        if offer.peer not in (None, peer):
            self._stats.dropped["stranger"] += 1
            self._reply(peer, wire.Fail(*offer.key, "taken"), offer.secret)
            return
        if offer.ending:
            self._reply(peer, wire.Fail(*offer.key, offer.ending), offer.secret)
            return
        if offer.peer is None:
            offer.peer, offer.wanted, offer.from_block = peer, fetch.hashes, fetch.from_block
            offer.num_staged = offer.num_sent = fetch.from_block
            offer.by_place = fetch.by_place and self._memory.shared is not None
        if fetch.layout != self._layout:
            self._stats.integrity_failures["layout"] += 1
            self._end(offer, "failed", tell="layout")
            return
        self._on_credit(offer, wire.Credit(*offer.key, fetch.limit))

    def _on_credit(self, offer: _Offer, credit: wire.Credit) -> None:
        assert offer.peer is not None
        if offer.ending:
            self._reply(offer.peer, wire.Fail(*offer.key, offer.ending), offer.secret)
            return
        self._renew(offer)
        offer.limit = max(offer.limit, min(credit.limit, offer.total))
        offer.end_sent = False  # who still asks has not had END, or will drop a second one
        state = wire.State(*offer.key, min(len(offer.block_ids), wire.MAX_BLOCKS), offer.num_sent)
        self._reply(offer.peer, state, offer.secret)
        self._take_turn(offer)

    # What the sockets ask

    def ready_batches(self) -> Iterator[Batch]:
        """Give at most one message of each offer that has one, in turn.

        Before taking the next, call `seal` and `sent` for what the socket takes, `refused` for what it does not take
        now: that comes again.
        """
        for _ in range(len(self._turns)):
            offer = self._turns.popleft()
            offer.has_turn = False
            if offer.ending:
                continue
            room = self._stage(offer)
            if not room or offer.staged:
                self._take_turn(offer)
            if offer.ending:
                continue
            if offer.staged:
                batch = offer.staged[0]
                if batch.stage is not None and batch.stage.is_ready():
                    yield batch
            elif self._may_end(offer):
                assert offer.peer is not None
                yield Batch(offer.key, offer.peer, offer.total, 0, None)

    def seal(self, batch: Batch) -> tuple[bytes, Sequence[memoryview]]:
        """Make the header of a batch that a socket will take, and give its payload frames."""
        offer = self._offers[batch.key]
        if batch.stage is None:
            assert offer.meta is not None
            age_s = min(1e6, max(0.0, self._clock() - offer.finished_at))
            return wire.seal(wire.End(*offer.key, offer.total, age_s, offer.meta), offer.secret), ()
        stop = batch.first_block + batch.num_blocks
        hashes = offer.hashes[batch.first_block * DIGEST_NBYTES : stop * DIGEST_NBYTES]
        checksums = batch.stage.sum()
        places = wire.join_places(offer.block_ids[batch.first_block : stop]) if offer.by_place else b""
        message = wire.Blocks(*offer.key, self._layout, batch.first_block, bytes(hashes), checksums, places)
        return wire.seal(message, offer.secret), () if offer.by_place else batch.stage.views

    def sent(self, batch: Batch, is_read: Callable[[], bool]) -> None:
        """Note that the sockets took a batch, and how to ask whether they still read its payload."""
        offer = self._offers[batch.key]
        if batch.stage is None:
            offer.end_sent = True
            return
        offer.staged.popleft()
        offer.num_sent = batch.first_block + batch.num_blocks
        self._stats.bytes_sent += batch.num_blocks * self._memory.block_nbytes
        self._watch(offer, batch, is_read)
        self._take_turn(offer)

    def refused(self, batch: Batch) -> None:
        """Note that the socket could not take a batch now."""
        self._take_turn(self._offers[batch.key])

    def sweep(self) -> None:
        """End what has expired; release what is no longer read."""
        for key in self._leases.sweep():
            self._end(self._offers[key], "expired", tell="expired")
        for parked_key, peer in self._parked_leases.sweep():
            self._parked_nbytes -= len(self._parked.pop((parked_key, peer)).body)
            self._stats.dropped["never_offered"] += 1
            self._reply(peer, wire.Fail(*parked_key, "unknown"), b"")
        self._epochs.sweep()
        if self._read:
            still_read = []
            for batch in self._read:
                if batch.is_read():
                    self._unwatch(batch)
                else:
                    still_read.append(batch)
            self._read = still_read

    def seconds_to_sweep(self) -> float:
        """Say how long a sweep can wait, if nothing happens."""
        left = (self._leases.seconds_left(), self._parked_leases.seconds_left())
        return min((seconds for seconds in left if seconds is not None), default=1.0)

    # Inside

    def _stage(self, offer: _Offer) -> bool:
        """Stage what credits allow; False: the memory has no room now."""
        while len(offer.staged) < STAGES_AHEAD:
            first = offer.num_staged
            most = self._placed_blocks if offer.by_place else self._batch_blocks
            stop = min(len(offer.block_ids), offer.limit, first + most)
            if stop <= first:
                return True
            span = slice(first * DIGEST_NBYTES, stop * DIGEST_NBYTES)
            skip = offer.from_block * DIGEST_NBYTES
            if offer.hashes[span] != offer.wanted[span.start - skip : span.stop - skip]:
                self._stats.integrity_failures["hash"] += 1
                self._end(offer, "failed", tell="hash")
                return True
            stage = self._stage_blocks(offer, offer.block_ids[first:stop])
            if stage is None:
                return False
            assert offer.peer is not None
            offer.staged.append(Batch(offer.key, offer.peer, first, stop - first, stage))
            offer.num_staged = stop
        return True

    def _stage_blocks(self, offer: _Offer, block_ids: Sequence[int]) -> Stage | None:
        if not offer.by_place:
            return self._memory.stage(block_ids)
        assert self._memory.shared is not None
        places = wire.join_places(block_ids)
        nbytes = self._memory.block_nbytes
        return InPlace(wire.read_places(places, nbytes, self._memory.shared), nbytes)

    def _may_end(self, offer: _Offer) -> bool:
        if offer.meta is None or offer.end_sent or offer.peer is None:
            return False
        if offer.total != len(offer.block_ids):
            self._stats.integrity_failures["length"] += 1
            self._end(offer, "failed", tell="length")
            return False
        return offer.num_sent == offer.total

    def _take_turn(self, offer: _Offer) -> None:
        if offer.peer is not None and not offer.has_turn and not offer.ending:
            offer.has_turn = True
            self._turns.append(offer)

    def _watch(self, offer: _Offer, batch: Batch, is_read: Callable[[], bool]) -> None:
        batch.is_read = is_read
        offer.num_read += 1
        self._read.append(batch)

    def _unwatch(self, batch: Batch) -> None:
        assert batch.stage is not None
        batch.stage.release()
        offer = self._offers[batch.key]
        offer.num_read -= 1
        if offer.ending and not offer.num_read:
            self._release(offer)

    def _renew(self, offer: _Offer) -> None:
        self._leases.renew(offer.key)
        self._stats.leases_held = len(self._leases)

    def _close_epochs(self, request_id: bytes, last_epoch: int) -> None:
        for offer in list(self._offers.values()):
            if offer.key[0] == request_id and offer.key[1] <= last_epoch:
                self._end(offer, "cancelled", tell="cancelled")

    def _end(self, offer: _Offer, reason: str, *, tell: str = "") -> None:
        """Send nothing more; release now, or when the sockets are done."""
        if offer.ending:
            return
        offer.ending = reason
        self._leases.end(offer.key)
        self._stats.leases_held = len(self._leases)
        if tell and offer.peer is not None:
            self._reply(offer.peer, wire.Fail(*offer.key, tell), offer.secret)
        while offer.staged:  # a copy that has begun cannot be called back
            batch = offer.staged.popleft()
            assert batch.stage is not None
            self._watch(offer, batch, batch.stage.is_ready)
        if not offer.num_read:
            self._release(offer)

    def _release(self, offer: _Offer) -> None:
        assert offer.ending is not None
        request_id, epoch = offer.key
        del self._offers[offer.key]
        self._epochs.end(offer.key)
        self._stats.held_bytes -= len(offer.block_ids) * self._memory.block_nbytes
        self._stats.releases[offer.ending] += 1
        self.events.append(Released(request_id, epoch, offer.ending, max(0, offer.num_sent - offer.from_block)))

    def _reply(self, peer: bytes, message: wire.ToSink, secret: bytes) -> None:
        self.replies.append((peer, wire.seal(message, secret)))


def _blocks_within(nbytes: int, block_nbytes: int) -> int:
    """Give how many blocks go into a message of so many bytes: at least one, at most what the format has room for."""
    return max(1, min(wire.MAX_BATCH_BLOCKS, nbytes // block_nbytes))
