"""The sink's side of the protocol: what is fetched, from whom, what has landed. No sockets, no threads.

The life of a fetch
    opened      FETCH is sent, and again each renewal until the source answers
    granted     a place was reserved for so many blocks: the credit
    landed      blocks that are verified (ticket, place, hash, checksum) and lie where they belong, without a gap
    ended       fetched, or failed from some block on; the good blocks before it are counted in either case. From
                this event on nothing is written into the blocks that were granted

A deadline here measures silence, never work: a source that answers pings may compute for as long as it likes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from baton.kvtransfer import wire
from baton.kvtransfer.epochs import Epochs
from baton.kvtransfer.memory import BlockMemory, Landing
from baton.kvtransfer.settings import TransferConfig, TransferStats
from baton.kvtransfer.wire import DIGEST_NBYTES, Key, Ticket

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
    """All wanted blocks are in place. `meta` is what the source's leg gave to `finish`."""

    request_id: bytes
    epoch: int
    num_blocks: int
    meta: bytes
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
    """cancelled, silent, unreachable, refused, restarted, lost, layout, checksum, hash, size, length, or the source's own words"""


Event = Landed | Fetched | FetchFailed


_AWAITED, _TAKEN, _IN_PLACE = 0, 1, 2


@dataclass(slots=True, eq=False)
class _Source:
    """One peer to fetch from."""

    heard_at: float
    ping_at: float
    fetches: set[Key] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class _Fetch:
    key: Key
    secret: bytes
    source: str
    incarnation: str
    from_block: int
    hashes: bytes
    shared: memoryview | None
    """The source's memory, if it is read here."""
    renew_at: float
    started_at: float
    block_ids: list[int] = field(default_factory=list)
    condition: bytearray = field(default_factory=bytearray)
    """Of each wanted block: awaited, taken (verified, the memory has its bytes) or in place."""
    num_taken: int = 0
    num_landed: int = 0
    num_told: int = 0
    """Blocks that the last `Landed` counted."""
    landings: deque[tuple[Sequence[int], Landing]] = field(default_factory=deque)
    told_limit: int = 0
    attached: bool = False
    end: wire.End | None = None
    computed_at: float = 0.0
    first_block_at: float | None = None
    last_block_at: float = 0.0
    owed_since: float | None = None
    """Since when blocks that the source has sent are missing, and none came."""
    failure: str | None = None

    @property
    def num_wanted(self) -> int:
        return len(self.hashes) // DIGEST_NBYTES

    @property
    def limit(self) -> int:
        return self.from_block + len(self.block_ids)


class ReceivingSide:
    """All fetches of one sink. Owned by one thread; the clock is given."""

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
        self._hello = wire.seal(wire.Hello(wire.VERSION, incarnation, layout))
        self._config = config
        self._stats = stats
        self._clock = clock
        self._fetches: dict[Key, _Fetch] = {}
        self._epochs = Epochs(clock)
        self._sources: dict[str, _Source] = {}
        self._landing: list[_Fetch] = []
        self._sweep_at = 0.0
        # A source answers a fetch it can place at once, and one it cannot place after park_s at the latest.
        self._patience_s = config.park_s + config.silence_s
        self._step_s = min(config.renew_s, config.silence_s / 3) / 4
        self.requests: deque[tuple[str, bytes]] = deque()
        """Headers to send, by source. Each may be lost: it is repeated."""
        self.events: deque[Event] = deque()

    @property
    def num_open(self) -> int:
        """Fetches that have not ended."""
        return len(self._fetches)

    @property
    def is_landing(self) -> bool:
        """Whether the memory still works on blocks that were taken over."""
        return bool(self._landing)

    # What the leg says

    def fetch(
        self,
        key: Key,
        ticket: Ticket,
        from_block: int,
        hashes: bytes,
        block_ids: Sequence[int] = (),
        shared: memoryview | None = None,
    ) -> None:
        """Ask for the blocks with these hashes; the first is block `from_block` of the prompt.

        `shared` is the source's memory, if it can be read here.
        """
        now = self._clock()
        source = self._sources.get(ticket.source)
        if source is None:
            source = self._sources[ticket.source] = _Source(heard_at=now, ping_at=now)
        source.fetches.add(key)
        fetch = self._fetches[key] = _Fetch(
            key,
            ticket.secret,
            ticket.source,
            ticket.source_incarnation,
            from_block,
            hashes,
            shared,
            renew_at=now,
            started_at=now,
        )
        fetch.condition = bytearray(fetch.num_wanted)
        self._epochs.open(key)
        if ticket.layout != self._layout:
            self._stats.integrity_failures["layout"] += 1
            self._fail(fetch, "layout")
            return
        self.grant(key, block_ids)
        self._ping(ticket.source, source)
        self._ask(fetch)

    def grant(self, key: Key, block_ids: Sequence[int]) -> None:
        """Give the next wanted blocks these places to land in."""
        fetch = self._fetches.get(key)
        if fetch is None or fetch.failure:
            return
        room = fetch.num_wanted - len(fetch.block_ids)
        fetch.block_ids += block_ids[:room]
        self._stats.reserved_bytes += min(room, len(block_ids)) * self._memory.block_nbytes
        if fetch.attached:
            self._ask(fetch)

    def cancel(self, key: Key) -> None:
        """Give up a fetch; it ends as failed, with what is good until then."""
        fetch = self._fetches.get(key)
        if fetch is not None:
            self._fail(fetch, "cancelled")

    def close(self) -> None:
        """Give up all fetches; `sweep` until none is open."""
        for fetch in list(self._fetches.values()):
            self._fail(fetch, "cancelled")

    def lose(self, source_name: str) -> None:
        """Note that a source cannot be reached at all."""
        source = self._sources.get(source_name)
        for key in list(source.fetches) if source is not None else ():
            self._fail(self._fetches[key], "unreachable", tell=False)

    # What sources say

    def receive(self, source_name: str, frames: Sequence[wire.Buffer]) -> None:
        """Act on one message; a bad one is counted and does nothing."""
        try:
            message, sealed = wire.parse(frames[0], wire.TO_SINK)
            if len(frames) > 1 and not isinstance(message, wire.Blocks):
                raise wire.BadFrame("garbage", "payload after a message that has none")
            source = self._sources.get(source_name)
            if source is not None:
                source.heard_at = self._clock()
            if isinstance(message, wire.Welcome):
                if not wire.is_authentic(sealed, b""):
                    raise wire.BadFrame("garbage", "damaged WELCOME")
                self._on_welcome(source, message)
                return
            fetch = self._find(source_name, message, sealed)
        except wire.BadFrame as bad:
            self._stats.dropped[bad.reason] += 1
            return
        if not fetch.attached:
            fetch.attached = True
            if fetch.limit > fetch.told_limit:
                self._ask(fetch)
        match message:
            case wire.Blocks():
                self._on_blocks(fetch, message, frames[1:])
            case wire.State():
                self._on_state(fetch, message)
            case wire.End():
                self._on_end(fetch, message)
            case wire.Fail():
                self._fail(fetch, message.reason if wire.is_authentic(sealed, fetch.secret) else "unknown", tell=False)

    def _find(self, source_name: str, message: wire.OfTicket, sealed: wire.Sealed) -> _Fetch:
        key = message.request_id, message.epoch
        fetch = self._fetches.get(key)
        if fetch is None or fetch.failure:
            raise wire.BadFrame("late" if fetch else self._epochs.why_unknown(key))
        if fetch.source != source_name:
            raise wire.BadFrame("stranger", "the ticket is another source's")
        unknown = isinstance(message, wire.Fail) and wire.is_authentic(sealed, b"")
        # A source that knows no ticket has no secret to seal with. What it says can cost a transfer, never content.
        if not unknown and not wire.is_authentic(sealed, fetch.secret):
            raise wire.BadFrame("forged")
        return fetch

    def _on_welcome(self, source: _Source | None, welcome: wire.Welcome) -> None:
        if source is None:
            return
        for key in list(source.fetches):
            fetch = self._fetches[key]
            if welcome.version != wire.VERSION or welcome.layout != self._layout:
                self._stats.integrity_failures["layout"] += 1
                self._fail(fetch, "layout")
            elif welcome.incarnation != fetch.incarnation:
                self._fail(fetch, "restarted", tell=False)

    def _on_blocks(self, fetch: _Fetch, message: wire.Blocks, payload: Sequence[wire.Buffer]) -> None:
        first, num_blocks = message.first_block - fetch.from_block, message.num_blocks
        if first < 0 or first + num_blocks > len(fetch.block_ids):
            self._stats.dropped["over_credit"] += 1
            return
        span = slice(first * DIGEST_NBYTES, (first + num_blocks) * DIGEST_NBYTES)
        if message.layout != self._layout:
            self._spoil(fetch, "layout")
            return
        if message.hashes != fetch.hashes[span]:
            self._spoil(fetch, "hash")
            return
        places = [place for place in range(first, first + num_blocks) if fetch.condition[place] == _AWAITED]
        if not places:
            self._stats.dropped["duplicate"] += 1
            return
        try:
            if message.places and fetch.shared is not None and not payload:
                blocks = wire.read_places(message.places, self._memory.block_nbytes, fetch.shared)
            else:
                blocks = wire.split_payload(num_blocks, self._memory.block_nbytes, payload)
        except wire.BadFrame:
            self._spoil(fetch, "size")
            return
        if len(places) < num_blocks:
            blocks = [blocks[place - first] for place in places]
        landing = self._memory.land([fetch.block_ids[place] for place in places], blocks)
        expected = message.checksums
        if len(places) < num_blocks:
            expected = b"".join(
                expected[at : at + DIGEST_NBYTES] for at in ((place - first) * DIGEST_NBYTES for place in places)
            )
        num_good = _num_equal(landing.checksums, expected)
        self._take(fetch, places[:num_good], landing)
        if num_good < len(places):
            self._spoil(fetch, "checksum")
        else:
            self._advance(fetch)

    def _take(self, fetch: _Fetch, places: Sequence[int], landing: Landing) -> None:
        """Note which of a landing's blocks are verified; its other blocks are being written all the same."""
        fetch.landings.append((places, landing))
        for place in places:
            fetch.condition[place] = _TAKEN
        fetch.num_taken += len(places)
        self._stats.bytes_received += len(places) * self._memory.block_nbytes
        now = self._clock()
        if fetch.first_block_at is None:
            fetch.first_block_at = now
        fetch.last_block_at = now
        if fetch.owed_since is not None:
            fetch.owed_since = now

    def _on_state(self, fetch: _Fetch, state: wire.State) -> None:
        self._note_owed(fetch, state.num_sent - fetch.from_block)

    def _on_end(self, fetch: _Fetch, end: wire.End) -> None:
        if end.num_blocks != fetch.from_block + fetch.num_wanted:
            self._spoil(fetch, "length")
            return
        if fetch.end is None:
            fetch.end = end
            fetch.computed_at = self._clock() - end.age_s
        self._note_owed(fetch, fetch.num_wanted)
        self._advance(fetch)

    # Time

    def sweep(self) -> None:
        """Renew what is wanted, end what is lost, count what has landed.

        Read every socket at least once between two sweeps, or a source is taken for silent that was not heard out.
        """
        for fetch in self._landing:
            if fetch.landings:
                self._advance(fetch)
        self._landing = [fetch for fetch in self._landing if fetch.landings]
        now = self._clock()
        if now < self._sweep_at:
            return
        self._sweep_at = now + self._step_s
        for name, source in list(self._sources.items()):
            if now - source.heard_at > self._config.silence_s:
                for key in list(source.fetches):
                    self._fail(self._fetches[key], "silent")
            elif now >= source.ping_at:
                self._ping(name, source)
        for fetch in list(self._fetches.values()):
            if fetch.failure:
                continue
            if fetch.owed_since is not None and now - fetch.owed_since > self._config.stall_s:
                self._fail(fetch, "lost")
            elif not fetch.attached and now - fetch.started_at > self._patience_s:
                self._fail(fetch, "refused")
            elif now >= fetch.renew_at:
                self._ask(fetch)
        self._epochs.sweep()

    def seconds_to_sweep(self) -> float:
        """Say how long a sweep can wait, if nothing happens."""
        return max(0.0, self._sweep_at - self._clock()) if self._fetches else 1.0

    # Inside

    def _note_owed(self, fetch: _Fetch, num_sent: int) -> None:
        if num_sent <= fetch.num_taken:
            fetch.owed_since = None
        elif fetch.owed_since is None:
            fetch.owed_since = self._clock()

    def _advance(self, fetch: _Fetch) -> None:
        """Count what is in place, and end the fetch when that is all."""
        while fetch.landings and fetch.landings[0][1].is_ready():
            for place in fetch.landings.popleft()[0]:
                fetch.condition[place] = _IN_PLACE
        if fetch.landings and fetch not in self._landing:
            self._landing.append(fetch)
        while fetch.num_landed < fetch.num_wanted and fetch.condition[fetch.num_landed] == _IN_PLACE:
            fetch.num_landed += 1
        if fetch.failure:
            if not fetch.landings:
                self._close(fetch, FetchFailed(*fetch.key, fetch.num_landed, fetch.failure), fetch.failure)
            return
        num_untold = fetch.num_landed - fetch.num_told
        if num_untold >= LANDED_BLOCKS or (num_untold and fetch.num_landed == len(fetch.block_ids)):
            fetch.num_told = fetch.num_landed
            self.events.append(Landed(*fetch.key, fetch.num_landed))
        if fetch.end is not None and fetch.num_landed == fetch.num_wanted:
            self._complete(fetch, fetch.end)

    def _complete(self, fetch: _Fetch, end: wire.End) -> None:
        now = self._clock()
        seconds = 0.0 if fetch.first_block_at is None else fetch.last_block_at - fetch.first_block_at
        exposed_s = max(0.0, now - max(fetch.computed_at, fetch.started_at))
        self._stats.seconds += seconds
        self._stats.exposed_seconds += exposed_s
        self._request(fetch, wire.Done(*fetch.key))
        self._close(fetch, Fetched(*fetch.key, fetch.num_landed, end.meta, seconds, exposed_s), "done")

    def _spoil(self, fetch: _Fetch, kind: str) -> None:
        """End a fetch whose source is authentic but whose blocks are not what was asked for."""
        self._stats.integrity_failures[kind] += 1
        self._fail(fetch, kind)

    def _fail(self, fetch: _Fetch, reason: str, *, tell: bool = True) -> None:
        if fetch.failure:
            return
        fetch.failure = reason
        if tell:
            self._request(fetch, wire.Cancel(*fetch.key))
        self._advance(fetch)

    def _close(self, fetch: _Fetch, event: Event, outcome: str) -> None:
        del self._fetches[fetch.key]
        self._epochs.end(fetch.key)
        source = self._sources[fetch.source]
        source.fetches.discard(fetch.key)
        if not source.fetches:
            del self._sources[fetch.source]
        self._stats.reserved_bytes -= len(fetch.block_ids) * self._memory.block_nbytes
        self._stats.fetches[outcome] += 1
        self.events.append(event)

    def _ask(self, fetch: _Fetch) -> None:
        """Send the fetch until it is answered, and the credit from then on."""
        fetch.renew_at = self._clock() + self._config.renew_s
        fetch.told_limit = fetch.limit
        if fetch.attached:
            self._request(fetch, wire.Credit(*fetch.key, fetch.limit))
        else:
            self._request(
                fetch,
                wire.Fetch(
                    *fetch.key, self._layout, fetch.from_block, fetch.limit, fetch.hashes, fetch.shared is not None
                ),
            )

    def _ping(self, name: str, source: _Source) -> None:
        source.ping_at = self._clock() + self._config.silence_s / 3
        self.requests.append((name, self._hello))

    def _request(self, fetch: _Fetch, message: wire.ToSource) -> None:
        self.requests.append((fetch.source, wire.seal(message, fetch.secret)))


def _num_equal(found: bytes, expected: bytes) -> int:
    """Count the digests that are as expected before the first that is not."""
    if found == expected:
        return len(expected) // DIGEST_NBYTES
    starts = range(0, len(expected), DIGEST_NBYTES)
    return next(i for i, at in enumerate(starts) if found[at : at + DIGEST_NBYTES] != expected[at : at + DIGEST_NBYTES])
