"""The store itself: which worker reads and writes what, and what each of them is told. No sockets, no threads, no clock of its own.

The stations of a loan
    WANT      blocks in the arena are held; those that only the disk has get slots, which are read into
    LENT      once all are there
    DONE      they are let go; also when the worker is gone
Of a slot to write in: RESERVE, GRANTED, COMMIT; then its block can be found, and is written to disk one after another.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from baton.kvtransfer.store.arena import Arena
from baton.kvtransfer.store.disk import BlockFiles
from baton.kvtransfer.store.messages import (
    DIGEST_NBYTES,
    NONE,
    SILENCE_S,
    VERSION,
    Clear,
    Commit,
    Done,
    Granted,
    Hello,
    Known,
    Lent,
    Reserve,
    ToClient,
    ToStore,
    Want,
    Welcome,
)
from baton.kvtransfer.store.slots import Found, Slots
from baton.logs import get_logger

FIRST_DISK_RATE = 2e9
RATE_SHARE = 0.02
"""Of a block that was read in what is known of the disk."""
NUM_READERS = 3
"""Blocks that are read at a time."""
PAUSE_S = 2.0
"""Who did not look at its clock for so long was stopped itself."""
MOST_GRANTED = 2
"""The part of the arena that workers may have at hand to write in, all together: the more there are, the less each has."""
log = get_logger("kvstore")
_T = TypeVar("_T")
Do = Callable[[Callable[[], _T], Callable[[_T], None]], None]
"""Runs the first elsewhere, then gives what it returned to the second, here."""


@dataclass(slots=True, eq=False)
class _Loan:
    found: list[Found | None]
    from_disk: list[bool]
    num_pending: int = 0
    """Blocks that are being read from disk."""
    is_over: bool = False

    @property
    def slots(self) -> list[int]:
        return [found.slot for found in self.found if found is not None]


@dataclass(slots=True, eq=False)
class _Client:
    id: bytes
    layout: str
    session: int
    heard_at: float
    loans: dict[int, _Loan] = field(default_factory=dict)
    granted: set[int] = field(default_factory=set)

    def key(self, name: bytes) -> bytes:
        return bytes.fromhex(self.layout) + name


@dataclass(slots=True)
class Counts:
    """What has happened since the start."""

    num_wanted: int = 0
    num_lent: int = 0
    """From the arena."""
    num_read: int = 0
    """From disk."""
    num_stored: int = 0
    num_bad: int = 0
    """Blocks whose bytes were not as their checksum says."""
    num_lost_clients: int = 0
    num_dropped: int = 0
    """Messages that were none, or of nobody known."""

    def copy(self) -> Counts:
        """Return them as they are now."""
        return dataclasses.replace(self)


class Store:
    """One arena, and what is in it."""

    def __init__(
        self,
        store_id: str,
        incarnation: str,
        arena: Arena,
        disk: BlockFiles | None,
        *,
        send: Callable[[bytes, ToClient], bool],
        do: Do[bytes | bool | None],
        tell: Callable[[list[bytes], list[bytes]], None],
    ) -> None:
        """`send` takes a client and a message, and says whether it was taken; `tell` hears the names that came and went."""
        self.store_id, self.incarnation = store_id, incarnation
        self.arena, self.disk = arena, disk
        self.slots = Slots(0)
        self.block_nbytes = 0
        self.counts = Counts()
        self._send, self._do, self._tell = send, do, tell
        self._clients: dict[bytes, _Client] = {}
        self._to_write: deque[bytes] = deque()
        self._num_jobs = 0
        """Blocks that the disk reads or writes now."""
        self._is_writing = False
        self._disk_rate = FIRST_DISK_RATE
        """Bytes a second, as learned."""
        self._changed: dict[bytes, None] = {}
        self._told: set[bytes] = set()
        self._checked_at: float | None = None
        self.note_changed(disk.keys() if disk is not None else ())

    @property
    def num_clients(self) -> int:
        """Workers that are heard of."""
        return len(self._clients)

    @property
    def num_loans(self) -> int:
        """Lists of blocks that workers read, or have asked for."""
        return sum(len(client.loans) for client in self._clients.values())

    # -- what workers say -------------------------------------------------------------------------------------

    def take(self, client_id: bytes, message: ToStore, now: float) -> None:
        """Take a message in."""
        if isinstance(message, Hello):
            self._greet(client_id, message, now)
            return
        client = self._clients.get(client_id)
        if client is None:  # it says hello within a second, and begins anew
            self.counts.num_dropped += 1
            return
        client.heard_at = now
        match message:
            case Want():
                self._lend(client, message)
            case Done():
                self._end_loan(client, message)
            case Reserve():
                self._grant(client, message)
            case Commit():
                self._commit(client, message)
            case Clear():
                self._clear(client)

    def expire(self, now: float) -> None:
        """Give up workers that are silent; a pause of our own is nobody's silence."""
        pause_s = 0.0 if self._checked_at is None else now - self._checked_at
        self._checked_at = now
        for client in list(self._clients.values()):
            if pause_s > PAUSE_S:
                client.heard_at += pause_s
            if now - client.heard_at > SILENCE_S:
                self._lose(client, "silent")

    def note_changed(self, keys: Iterable[bytes]) -> None:
        """Note that these blocks may have come or gone; `flush` tells."""
        self._changed.update(dict.fromkeys(keys))

    def flush(self) -> None:
        """Tell workers and routers what has changed since the last call."""
        changed, self._changed = self._changed, {}
        stored = [key for key in changed if key not in self._told and self._has(key)]
        evicted = [key for key in changed if key in self._told and not self._has(key)]
        if not stored and not evicted:
            return
        self._told.update(stored)
        self._told.difference_update(evicted)
        for client in list(self._clients.values()):
            new, old = list(_names(client, stored)), list(_names(client, evicted))
            if new or old:
                self._say(client, Known(new, old))
        self._tell([key[DIGEST_NBYTES:] for key in stored], [key[DIGEST_NBYTES:] for key in evicted])

    # -- who is there -----------------------------------------------------------------------------------------

    def _greet(self, client_id: bytes, hello: Hello, now: float) -> None:
        client = self._clients.get(client_id)
        if client is not None and hello.incarnation in ("", self.incarnation) and client.layout == hello.layout:
            client.heard_at = now
            if hello.incarnation:
                self._say(client, self._welcome(client))
                return
        if client is not None:
            self._lose(client, "began anew")
        refusal = self._refusal(hello)
        if refusal:
            self._send(client_id, Welcome(self.store_id, self.incarnation, refusal))
            return
        session = secrets.randbits(48)  # not one of an earlier process
        client = self._clients[client_id] = _Client(client_id, hello.layout, session, now)
        log.info("store_joined", layout=hello.layout, num_clients=len(self._clients))
        self.flush()
        if self._say(client, self._welcome(client)):
            self._say(client, Known(list(_names(client, self._told)), is_whole=True))

    def _refusal(self, hello: Hello) -> str:
        """Say why these blocks are not taken; empty: they are. The first worker says how large blocks are."""
        if hello.version != VERSION:
            return f"it speaks version {VERSION}, not {hello.version}"
        if hello.block_nbytes == self.block_nbytes:
            return ""
        if self._clients or self._num_jobs:
            return (
                f"its blocks have {self.block_nbytes} bytes, not {hello.block_nbytes}: another model or layout uses it"
            )
        num_slots = self.arena.nbytes // hello.block_nbytes
        if not num_slots:
            return (
                f"kv_store_size: {self.arena.nbytes} bytes hold no block of {hello.block_nbytes}. Raise --kv-store-size"
            )
        self.note_changed(self.slots.keys())
        self._to_write.clear()
        self.block_nbytes = hello.block_nbytes
        self.slots = Slots(num_slots, lambda key: self.note_changed((key,)))
        return ""

    def _welcome(self, client: _Client) -> Welcome:
        arena, num_slots = self.arena, self.slots.num_slots
        return Welcome(self.store_id, self.incarnation, "", arena.inode, arena.nbytes, num_slots, client.session)

    def _lose(self, client: _Client, reason: str) -> None:
        """Take back all that a worker reads and writes."""
        del self._clients[client.id]
        self.counts.num_lost_clients += 1
        for loan in client.loans.values():
            self._end(loan)
        self.slots.give_up(client.granted)
        log.info("store_left", reason=reason, num_clients=len(self._clients))

    def _say(self, client: _Client, message: ToClient) -> bool:
        """Send, or lose who does not take it."""
        if self._clients.get(client.id) is not client:
            return False
        if self._send(client.id, message):
            return True
        self._lose(client, "takes no messages")
        return False

    # -- lending ----------------------------------------------------------------------------------------------

    def _lend(self, client: _Client, want: Want) -> None:
        if want.number in client.loans:
            self.counts.num_dropped += 1
            return
        keys = [client.key(name) for name in want.names]
        loan = client.loans[want.number] = _Loan([self.slots.hold(key) for key in keys], [False] * len(keys))
        self.counts.num_wanted += len(keys)
        self.counts.num_lent += len(loan.slots)
        disk = self.disk
        if disk is not None:
            absent = [at for at, found in enumerate(loan.found) if found is None and keys[at] in disk]
            is_worth = len(absent) * self.block_nbytes <= want.worth_s * self._disk_rate
            slots = self.slots.grant(len(absent)) if is_worth else []
            loan.num_pending = len(slots)
            for at, slot in zip(absent, slots, strict=False):
                self._load(client, want.number, loan, at, keys[at], slot)
            if slots:
                return
        self._answer(client, want.number, loan)

    def _load(self, client: _Client, number: int, loan: _Loan, at: int, key: bytes, slot: int) -> None:
        """Read a block from disk into its slot."""
        disk, to = self.disk, self._bytes(slot)
        assert disk is not None

        def then(checksum: bytes | bool | None) -> None:
            self._num_jobs -= 1
            loan.num_pending -= 1
            if isinstance(checksum, bytes):
                self.slots.commit([slot], [key], [checksum])
                self.counts.num_read += 1
                loan.found[at], loan.from_disk[at] = self.slots.hold(key), True
            else:
                self.slots.give_up([slot])
            self._answer(client, number, loan)

        def read() -> bytes | None:
            began_at = time.perf_counter()
            checksum = disk.read(key, to)
            rate = NUM_READERS * len(to) / max(time.perf_counter() - began_at, 1e-6)
            self._disk_rate += (rate - self._disk_rate) * RATE_SHARE  # several threads: one loses the other's at worst
            return checksum

        self._num_jobs += 1
        self._do(read, then)

    def _answer(self, client: _Client, number: int, loan: _Loan) -> None:
        """Lend what is there, once all is."""
        if loan.num_pending:
            return
        if loan.is_over:
            self.slots.let_go(loan.slots)
            return
        slots = [NONE if found is None else found.slot for found in loan.found]
        checksums = [b"" if found is None else found.checksum for found in loan.found]
        self._say(client, Lent(number, slots, checksums, loan.from_disk))

    def _end_loan(self, client: _Client, done: Done) -> None:
        loan = client.loans.pop(done.number, None)
        if loan is None:
            self.counts.num_dropped += 1
            return
        for at in done.bad:
            found = loan.found[at] if at < len(loan.found) else None
            if found is not None:
                self._forget(client, found.slot)
        self._end(loan)

    def _forget(self, client: _Client, slot: int) -> None:
        """Forget a block, here and on disk, whose bytes are not what its writer summed."""
        key = self.slots.forget(slot)
        self.counts.num_bad += 1
        if key is not None and self.disk is not None:
            self.disk.remove(key)
        log.error("stored_block_bad", layout=client.layout, name="" if key is None else key[DIGEST_NBYTES:].hex())

    def _end(self, loan: _Loan) -> None:
        """Let a loan's slots go, those that are read into once they are."""
        if loan.num_pending:
            loan.is_over = True
        else:
            self.slots.let_go(loan.slots)

    # -- storing ----------------------------------------------------------------------------------------------

    def _grant(self, client: _Client, reserve: Reserve) -> None:
        room = self.slots.num_slots // MOST_GRANTED - self.slots.num_writing
        slots = self.slots.grant(max(0, min(reserve.num_slots, room)))
        client.granted.update(slots)
        self._say(client, Granted(client.session, slots))

    def _commit(self, client: _Client, commit: Commit) -> None:
        slots = [*commit.slots, *commit.unused]
        is_whole = len(commit.slots) == len(commit.names) == len(commit.checksums) and len(set(slots)) == len(slots)
        if commit.session != client.session or not is_whole or not client.granted.issuperset(slots):
            self.counts.num_dropped += 1
            return
        client.granted.difference_update(slots)
        self.slots.give_up(commit.unused)
        keys = self.slots.commit(commit.slots, [client.key(name) for name in commit.names], commit.checksums)
        self.counts.num_stored += len(keys)
        if self.disk is not None and not self.disk.is_full:
            self._to_write.extend(key for key in keys if key not in self.disk)
            self._write_next()

    def _clear(self, client: _Client) -> None:
        """Forget the blocks of a client's layout that nobody reads."""
        layout, disk = bytes.fromhex(client.layout), self.disk
        self.slots.drop_unused(layout)
        log.info("store_cleared", layout=client.layout)
        if disk is None:
            return
        on_disk = disk.keys()
        keys = [key for key in on_disk if key.startswith(layout) and key not in self.slots]

        def remove() -> None:
            for key in keys:
                disk.remove(key)

        def then(_nothing: bytes | bool | None) -> None:
            self._num_jobs -= 1

        self._num_jobs += 1
        self._do(remove, then)

    def _write_next(self) -> None:
        """Write the next block that is not on disk yet; one that was evicted meanwhile is passed over."""
        disk = self.disk
        if disk is None or self._is_writing:
            return
        while self._to_write:
            key = self._to_write.popleft()
            found = None if key in disk else self.slots.hold(key)
            if found is not None:
                self._write(disk, key, found)
                return

    def _write(self, disk: BlockFiles, key: bytes, found: Found) -> None:
        block = self._bytes(found.slot)

        def then(_is_written: bytes | bool | None) -> None:
            self._num_jobs -= 1
            self._is_writing = False
            self.slots.let_go([found.slot])
            self._write_next()

        self._num_jobs += 1
        self._is_writing = True
        self._do(lambda: disk.write(key, found.checksum, block), then)

    def _bytes(self, slot: int) -> memoryview:
        return self.arena.view[slot * self.block_nbytes : (slot + 1) * self.block_nbytes]

    def _has(self, key: bytes) -> bool:
        return key in self.slots or (self.disk is not None and key in self.disk)


def _names(client: _Client, keys: Iterable[bytes]) -> Iterator[bytes]:
    """The names of a client's layout among keys."""
    layout = bytes.fromhex(client.layout)
    return (key[DIGEST_NBYTES:] for key in keys if key.startswith(layout))
