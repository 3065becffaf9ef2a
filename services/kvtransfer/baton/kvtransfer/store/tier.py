"""StoreTier: the store of the host as an engine's host tier. The engine's thread never waits here.

The stations of a save
    save      a granted slot is taken from the stock, the copy starts
    (thread)  the copy has ended: the link's thread tells the store of the block (COMMIT), also while the engine sleeps
Of a load
    look_up   the names that the store is known to have are asked for (WANT); they come, or patience ends
    load      the copy starts
    poll      it has ended: the sums are compared, the slots let go (DONE)

What the store has is kept from its log, so a name that it lacks costs no message. A store that is gone, stopped or started anew
answers nothing: lookups find nothing from then on, and copies that run end as usual, with sums that show what is good.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from baton.errors import ConfigError
from baton.host_tier import Copy, Loaded, Lookup, SlotCopies, TierCounts
from baton.kvtransfer.store.arena import Arena
from baton.kvtransfer.store.link import StoreLink
from baton.kvtransfer.store.messages import (
    MAX_NAMES,
    NONE,
    Clear,
    Commit,
    Done,
    Granted,
    Known,
    Lent,
    Reserve,
    ToClient,
    Want,
    Welcome,
)
from baton.logs import get_logger

MAX_STOCK = 1024
"""Slots at hand: the blocks of two steps of 8,192 tokens."""
STOCK_SHARE = 8
"""And at most this part of the arena."""
ASK_AGAIN_S = 5.0
PATIENCE_S = 1.0
"""With a store that answers lately: it takes a millisecond, and longer only where all cores are busy."""
PATIENCE_NBYTES = 1e9
"""A second more for so many: a disk that is slower is not worth waiting for."""
log = get_logger("kvstore")


@dataclass(slots=True, eq=False)
class Question:
    """A lookup: what of a list of names the store lends."""

    number: int
    names: Sequence[bytes]
    deadline: float
    hear: Callable[[], None]
    """Takes in what the store has said."""
    num_found: int | None = None
    slots: list[int] = field(default_factory=list)
    checksums: list[bytes] = field(default_factory=list)

    @property
    def num_blocks(self) -> int | None:
        """None: not known yet."""
        if self.num_found is None:
            self.hear()
        if self.num_found is None and time.monotonic() > self.deadline:
            self.num_found = 0
        return self.num_found


@dataclass(slots=True, eq=False)
class _Save:
    copy: Copy
    slots: list[int]
    names: list[bytes]
    session: int


@dataclass(slots=True, eq=False)
class _Load:
    copy: Copy
    question: Question
    num_blocks: int
    session: int


class StoreTier:
    """A `baton.host_tier.HostTier` over the store of the host."""

    saves: Literal["evicted", "computed"] = "computed"

    def __init__(
        self,
        link: StoreLink,
        make_copies: Callable[[memoryview, int], SlotCopies],
        compute_s: Callable[[int], float] = lambda num_blocks: math.inf,
    ) -> None:
        """`make_copies` makes copies to and from the slots of a piece of memory, the arena's first bytes; so many slots.
        `compute_s` predicts how long it takes to compute so many blocks: they are not waited for longer.
        """
        self._link = link
        self._compute_s = compute_s
        self._make_copies = make_copies
        self._copies: SlotCopies | None = None
        self._arena: Arena | None = None
        self._refused_inode = 0
        """Of an arena that could not be mapped."""
        self._session = 0
        self._store_id = ""
        self._num_slots = 0
        self._stock: list[int] = []
        self._asked_at = -math.inf
        """When slots were asked for that have not come."""
        self._known: set[bytes] = set()
        self._numbers = itertools.count(1)
        self._questions: dict[int, Question] = {}
        """Without an answer."""
        self._answered: set[Question] = set()
        self._saves: deque[_Save] = deque()
        """Copies that run, in their order; the link's thread takes them out."""
        self._committed: deque[_Save] = deque()
        self._saving: set[bytes] = set()
        self._loads: list[_Load] = []
        self._failed: list[Question] = []
        """Loads that end with nothing."""
        self._num_saved = self._num_loaded = self._num_damaged = 0
        link.watch(self._commit_ended)

    @property
    def is_busy(self) -> bool:
        """Whether a lookup or a load is open."""
        return bool(self._questions or self._answered or self._loads or self._failed)

    @property
    def store_id(self) -> str:
        """The store that answers, and whose memory can be copied from; empty: none."""
        copies = self._copies
        return self._store_id if self._link.is_up and copies is not None and copies.num_slots else ""

    @property
    def has_stock(self) -> bool:
        """Whether a block could be saved now."""
        return bool(self._stock)

    def counts(self) -> TierCounts:
        """What the store holds, and what this worker did with it."""
        num_used = min(len(self._known), self._num_slots)
        return TierCounts(self._num_slots, num_used, self._num_saved, self._num_loaded, self._num_damaged)

    # -- saving -----------------------------------------------------------------------------------------------

    def save(self, names: Sequence[bytes], block_ids: Sequence[int]) -> None:
        """Start copying those that the store lacks, as far as there are slots at hand."""
        self.hear()
        copies = self._copies
        if copies is None or not self._link.is_up:
            return
        new: dict[bytes, int] = {
            name: block_id
            for name, block_id in zip(names, block_ids, strict=True)
            if name not in self._known and name not in self._saving
        }
        usable = [slot for slot in self._stock if slot < copies.num_slots][: len(new)]
        if usable:
            taken = set(usable)
            self._stock = [slot for slot in self._stock if slot not in taken]
            names = list(new)[: len(usable)]
            copy = copies.save([new[name] for name in names], usable)
            self._saving.update(names)
            self._saves.append(_Save(copy, usable, names, self._session))
            self._link.wake()
        self._fill_stock()

    def guard(self, block_ids: Sequence[int]) -> None:
        """Put what still copies from these blocks before all that the engine starts from here on."""
        if self._copies is not None:
            self._copies.guard(block_ids)

    # -- loading ----------------------------------------------------------------------------------------------

    def look_up(self, names: Sequence[bytes]) -> Lookup:
        """Ask for the first of these that the store is known to have."""
        self.hear()
        num_known = 0
        if self._copies is not None and self._link.is_up:
            for name in names[:MAX_NAMES]:
                if name not in self._known:
                    break
                num_known += 1
        question = Question(next(self._numbers), names[:num_known], 0.0, self.hear, None if num_known else 0)
        if num_known:
            assert self._arena is not None
            worth_s = self._compute_s(num_known)
            nbytes = num_known * (self._arena.nbytes // self._num_slots)
            longest_s = PATIENCE_S + min(nbytes / PATIENCE_NBYTES, worth_s)
            question.deadline = time.monotonic() + longest_s
            self._questions[question.number] = question
            self._link.send(Want(question.number, list(question.names), worth_s))
        return question

    def drop(self, lookup: Lookup) -> None:
        """End an open question."""
        assert isinstance(lookup, Question)
        if lookup in self._answered:
            self._answered.remove(lookup)
            self._link.send(Done(lookup.number))
        else:
            self._give_up(lookup)

    def load(self, lookup: Lookup, block_ids: Sequence[int]) -> None:
        """Start copying the first blocks of an answered lookup into these."""
        assert isinstance(lookup, Question)
        if lookup not in self._answered or self._copies is None:  # the session in which it was answered has ended
            self._failed.append(lookup)
            return
        self._answered.remove(lookup)
        copy = self._copies.load(lookup.slots[: len(block_ids)], block_ids)
        self._loads.append(_Load(copy, lookup, len(block_ids), self._session))

    def poll(self) -> list[Loaded]:
        """Take what has ended, and tell the store of it."""
        self.hear()
        for question in list(self._questions.values()):
            if question.num_blocks is not None:  # hears what has come, which may answer others of them
                self._give_up(question)
        failed, self._failed = [Loaded(question, 0) for question in self._failed], []
        ended = [load for load in self._loads if load.copy.is_done()]
        self._loads = [load for load in self._loads if load not in ended]
        return [*failed, *(Loaded(load.question, self._end_load(load)) for load in ended)]

    def take_dropped(self) -> list[bytes]:
        """Return nothing: the store tells routers itself."""
        return []

    def clear(self) -> None:
        """Have the store forget what nobody reads; it tells when it has."""
        self._link.send(Clear())

    def close(self) -> None:
        """Wait for the copies that run, and leave the store."""
        self._link.close()
        if self._copies is not None:
            self._copies.close()
        self._copies = self._arena = None

    # -- what ends --------------------------------------------------------------------------------------------

    def _commit_ended(self) -> bool:
        """Tell the store of blocks whose copies have ended; whether others run. For the link's thread."""
        while self._saves and self._saves[0].copy.is_done():
            save = self._saves.popleft()
            self._link.send(Commit(save.session, save.slots, save.names, save.copy.sums()))
            self._committed.append(save)
        return bool(self._saves)

    def _end_load(self, load: _Load) -> int:
        """Compare sums, let the slots go; return how many blocks are good."""
        question, sums = load.question, load.copy.sums()
        bad = [at for at, its_sum in enumerate(sums) if its_sum != question.checksums[at]]
        num_good = bad[0] if bad else load.num_blocks
        if load.session != self._session:  # the slots were others' meanwhile
            bad = []
        if bad:
            self._num_damaged += len(bad)
            log.error("stored_block_bad", store_id=self._store_id, number=len(bad), effect="they are computed again")
        self._link.send(Done(question.number, bad))
        self._num_loaded += num_good
        return num_good

    def _give_up(self, question: Question) -> None:
        """End a question that was not answered."""
        if self._questions.pop(question.number, None) is not None:
            question.num_found = 0
            self._link.send(Done(question.number))

    # -- what the store says ----------------------------------------------------------------------------------

    def hear(self) -> None:
        """Take in what the store has said; to be called while the engine has nothing to do, too."""
        for message in self._link.take():
            self._take(message)
        while self._committed:
            save = self._committed.popleft()
            self._num_saved += len(save.names)
            self._saving.difference_update(save.names)

    def _take(self, message: ToClient) -> None:
        match message:
            case Welcome():
                self._welcome(message)
            case Known():
                if message.is_whole:
                    self._known.clear()
                self._known.difference_update(message.evicted)
                self._known.update(message.stored)
            case Granted() if message.session == self._session:
                self._asked_at = -math.inf
                self._stock += message.slots
            case Lent():
                self._lent(message)

    def _welcome(self, welcome: Welcome) -> None:
        if welcome.refusal or welcome.session == self._session:
            return
        self._begin(welcome)

    def _begin(self, welcome: Welcome) -> None:
        """Begin a session: what was granted or lent in the one before is not ours any more."""
        self._session, self._store_id = welcome.session, welcome.store_id
        self._num_slots = welcome.num_slots
        self._stock, self._asked_at = [], -math.inf
        self._known.clear()
        for question in list(self._questions.values()):  # the store may have answered in this session already
            self._give_up(question)
        for question in self._answered:
            question.num_found, question.slots = 0, []
        self._answered.clear()
        if self._arena is None or self._arena.inode != welcome.arena_inode:
            self._map(welcome)
        self._fill_stock()

    def _map(self, welcome: Welcome) -> None:
        if self._copies is not None:  # to let go of pinned memory takes seconds
            threading.Thread(target=self._copies.close, name="baton-unmap", daemon=True).start()
        self._copies = self._arena = None
        if welcome.arena_inode == self._refused_inode:
            return
        try:
            arena = Arena.open(self._link.folder, welcome.arena_inode, welcome.arena_nbytes)
            self._copies = self._make_copies(arena.view, welcome.num_slots)
            self._arena = arena
        except ConfigError as error:
            self._refused_inode = welcome.arena_inode
            log.warning("kvstore_not_mapped", reason=str(error), effect="blocks come from this worker alone")

    def _lent(self, lent: Lent) -> None:
        question = self._questions.pop(lent.number, None)
        if question is None:  # it was given up, which the store has been told
            return
        usable = 0 if self._copies is None else self._copies.num_slots
        num_found = next((at for at, slot in enumerate(lent.slots) if slot == NONE or slot >= usable), len(lent.slots))
        question.slots, question.checksums = lent.slots[:num_found], lent.checksums[:num_found]
        question.num_found = num_found
        if num_found:
            self._answered.add(question)
        else:
            self._link.send(Done(question.number))

    def _fill_stock(self) -> None:
        wanted, now = min(MAX_STOCK, self._num_slots // STOCK_SHARE), time.monotonic()
        is_asking = now - self._asked_at < ASK_AGAIN_S
        if self._copies is not None and not is_asking and len(self._stock) <= wanted // 2 < wanted:
            self._asked_at = now
            self._link.send(Reserve(wanted - len(self._stock)))
