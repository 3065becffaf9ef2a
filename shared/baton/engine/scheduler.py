"""What the next step computes: a pure function of sequences, blocks and budgets, with no clock and no torch.

The loop around it, synchronous or one step behind:

    plan = scheduler.plan()              # takes blocks, advances num_computed
    launch(plan)                         # or not yet collected ...
    scheduler.commit(plan, token_lists)  # ... when the next plan is made; plans are committed in their order
    scheduler.finish(sequence)           # stop, length, abort, deadline, error: one way out, from any state

Order of service is rank: priority (lower first), then the turn of its tenant (`Turns`), then arrival. Running sequences go first, those with one token to
compute before those with more; then the queue is admitted, in order. Why nobody starves: the first by rank can
always take the blocks of all others, every sequence fits the pool alone, and nothing of lower rank is admitted
before what waits, except past a sequence whose prefix is being computed by another at that moment or comes back from
the host, or whose tenant has every place but the eighth part that is kept for others; and past one for whose chunk a
step has no time, by those that hold their blocks and lack a few tokens; and past one whose grammar is being made. Where
blocks are short, a tenant that holds more than its part gives way to others (`BlockShares`), but never with its first
sequence, so the first by rank stays.

Blocks are given up only when no launched step may write in them, whatever stream it runs on: sequences are
preempted only while no step is in flight (`plan` gives None until the caller has collected), and what finishes
under a launched step keeps its blocks until that step is committed.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

from baton.engine.block_pool import BlockPool
from baton.engine.block_shares import BlockShares
from baton.engine.chunk_room import ChunkRoom, Pace
from baton.engine.host_blocks import Answer, Found, HostBlocks
from baton.engine.landing import LandingBlocks
from baton.engine.prefix_cache import PrefixCache
from baton.engine.sequence import Sequence, SequenceState
from baton.engine.sequence_blocks import SequenceBlocks
from baton.engine.step_plan import StepPlan
from baton.engine.step_shares import StepShares
from baton.engine.turns import Turns
from baton.engine.windows import Reach
from baton.errors import ConfigError, ContextTooLong, QueueFull

RUNNING = SequenceState.RUNNING
"""Read 256 times a step; a global costs half of an Enum's attribute."""

MAX_DEFERRED = 8
"""Sequences passed over in one plan because their prefix is being computed."""
MAX_BLOCKS_FOUND = 16_384
"""Blocks found in the prefix cache in one plan, 0.1 us each; 200 admissions of 30k known tokens would take 34 ms."""
MAX_PASSED = 256
"""Of the queue: behind so many nobody is looked for who may pass."""

_LONG = 256
"""Tokens of an answer that count as its work: how many there will be is not known."""

_rank = attrgetter("rank")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Bounds of a step and of the queue."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int = 16
    windows: tuple[int | None, ...] = (None,)
    """Of each KV group: how many positions its layers see; None: all."""
    max_num_waiting: int = 65_536
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True
    max_prefill_chunk: int | None = None

    def __post_init__(self) -> None:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is not valid: it must be at least "
                f"max_num_seqs={self.max_num_seqs}, so that every running sequence gets its token in each step."
            )


class Scheduler:
    """Own the queue and the running sequences, and every change of who holds which block.

    Large because planning, committing and every way in and out must agree on the same queues and counts; what has a noun of
    its own (a sequence's blocks, prefixes that are landing, plans) lies beside it.
    """

    def __init__(self, config: SchedulerConfig, pool: BlockPool, cache: PrefixCache | None = None) -> None:
        self.config = config
        self.pool = pool
        known = PrefixCache(pool) if cache is None else cache  # an empty one is false
        self.cache = known if config.enable_prefix_caching else None
        self.max_prefill_chunk = config.max_prefill_chunk
        """Most prefill tokens in a step that also decodes; may be changed between plans."""
        self.pace: Pace | None = None
        """Who says how long steps with chunks may take; None: nobody."""
        self.waiting: list[Sequence] = []
        """By rank, preempted ones included."""
        self.running: list[Sequence] = []
        """By rank."""
        self.receiving: set[Sequence] = set()
        self.held: set[Sequence] = set()
        self.num_preemptions = 0
        self.host: HostBlocks | None = None
        """What is given up and may come back, if there is a tier behind the device."""
        self._in_flight: deque[StepPlan] = deque()  # launched and not committed
        self._must_collect = False
        self.reach = Reach(config.block_size, config.windows, config.max_num_batched_tokens)
        self.blocks = SequenceBlocks(pool, self.cache, self.reach)
        self._landing = LandingBlocks(config.block_size)
        self._unreported: list[Sequence] = []
        self._num_arrivals = 0
        self._turns = Turns()
        self._shares = StepShares()
        self._seats: Counter[bytes] = Counter()
        """Of `running`, by tenant."""
        self._refused: set[Sequence] = set()
        """Those of `receiving` that got fewer places than they asked for."""
        self._needy: Sequence | None = None
        """For whom others gave way, or will; whose turn it is before the queue's."""

    # -- what there is ------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether a step is to be planned or collected, or blocks are on their way back from the host."""
        return bool(self.running or self.waiting or self._in_flight or self.is_restoring)

    @property
    def is_restoring(self) -> bool:
        """Whether the host is asked for blocks, so that `take_restored` will have something to do without any step."""
        return self.host is not None and self.host.is_busy

    @property
    def is_stuck(self) -> bool:
        """Whether nothing runs, and what receiving sequences hold is wanted by the first of the queue."""
        if self.running or self._in_flight or not self.waiting or (self.host is not None and self.host.num_loading):
            return False  # an open question to the host frees no block, and its answer waits for one
        first = self.waiting[0]
        num_needed = self.blocks.num_needed(first, self.blocks.known(first))
        return self.pool.num_available < num_needed and self._last_imported() in (None, first)

    # -- ways in ------------------------------------------------------------------------------------------

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Hashes its prompt, so that no plan has to.

        Raises:
            QueueFull: `max_num_waiting` sequences wait already.
            ContextTooLong: its `max_len` exceeds the model's context or the whole pool.
        """
        if len(self.waiting) >= self.config.max_num_waiting:
            raise QueueFull(
                f"{len(self.waiting)} requests are waiting, which is the limit (--max-num-waiting). Try again later."
            )
        self.follow(sequence)

    def follow(self, sequence: Sequence) -> None:
        """Queue another choice of a request that was taken in already, however many wait.

        Raises:
            ContextTooLong: as `add`; never where another choice of the request passed.
        """
        self._enter(sequence)
        self._queue(sequence)

    def receive(self, sequence: Sequence) -> tuple[int, list[bytes]]:
        """Take in a sequence whose KV will come from elsewhere; it stays out of plans until `admit`.

        Blocks that the prefix cache knows are shared at once. Returns the names of the others, in the order in which
        `reserve` grants places for them, and the place of the first in the list of all that a receiver may need.

        Raises:
            ContextTooLong: as `add`.
        """
        self._enter(sequence)
        sequence.state = SequenceState.RECEIVING
        self.receiving.add(sequence)
        return self.blocks.expect(sequence)

    def reserve(self, sequence: Sequence, num_blocks: int) -> list[int]:
        """Grant a receiving sequence up to `num_blocks` more blocks for its prompt; maybe none.

        Never evicts what runs: a block is kept back for each running sequence, and what the first of the queue needs
        if that is older. Sequences that receive can wait for each other; then the caller admits one with what it has.
        """
        assert sequence.state is SequenceState.RECEIVING, sequence
        spare = self.pool.num_available - len(self.running) * self.reach.num_groups
        if self.waiting and self.waiting[0].rank < sequence.rank and sequence is not self._needy:
            spare -= self.blocks.num_missing(self.waiting[0])
        if spare < num_blocks:
            self._refused.add(sequence)
        else:
            self._refused.discard(sequence)
        return self.blocks.take_places(sequence, max(0, min(num_blocks, spare)))

    def admit(
        self, sequence: Sequence, num_blocks: int, token_ids: Iterable[int] = (), *, num_asked: int | None = None
    ) -> int:
        """Queue a receiving sequence; the first `num_blocks` of the blocks that `receive` named have their KV.

        They were those of its first `num_asked` tokens; None: of all. `token_ids` were sampled elsewhere and are
        appended; if they end the sequence, the caller finishes it before the next plan. What is missing is computed
        here. Returns how many tokens those blocks have brought.
        """
        assert sequence.state is SequenceState.RECEIVING, sequence
        self.receiving.remove(sequence)
        self._refused.discard(sequence)
        num_known = sequence.num_computed
        num_computed = self.blocks.arrived(sequence, num_blocks, num_asked or len(sequence.token_ids))
        sequence.token_ids.extend(token_ids)
        sequence.num_computed = min(num_computed, len(sequence.token_ids) - 1)  # the last is computed again
        self.blocks.index(sequence, sequence.num_computed)
        self._queue(sequence)
        return num_computed - num_known

    def take_restored(self) -> None:
        """Queue the sequences whose blocks have come back from the host; what did not come back good is computed."""
        assert self.host is not None
        for sequence, num_good, num_asked in self.host.poll():
            if sequence.state is not SequenceState.RECEIVING:  # it has ended
                continue
            num_tokens = self.admit(sequence, num_good, num_asked=num_asked)
            self.host.num_restored_tokens += num_tokens
            if not sequence.num_preemptions:
                sequence.num_cached += num_tokens
                sequence.num_restored = num_tokens

    # -- the step -----------------------------------------------------------------------------------------

    def plan(self) -> StepPlan | None:
        """Choose the next step's rows, take their blocks and count their tokens as computed.

        None: nothing can run now. With a step in flight, collect it and ask again. With a tier behind the device,
        `host.flush` comes before anything is written in the plan's blocks.
        """
        if self._must_collect and self._in_flight:
            return None
        self._must_collect = False
        plan = StepPlan()
        self._needy = self._make_way(plan)
        unfinished = self._plan_decodes(plan)
        room = self._room(plan)
        for sequence in unfinished:
            self._plan_chunk(plan, sequence, room)
        self._plan_admissions(plan, room)
        if not plan.sequences:
            self._unreported += plan.preempted
            return None
        plan.preempted[:0] = self._unreported
        self._unreported.clear()
        self._in_flight.append(plan)
        return plan

    def commit(self, plan: StepPlan, token_lists: list[list[int]]) -> None:
        """Take in a step's result: for each row that samples, in row order, the tokens that go on its sequence.

        One token at least. Fewer than the row samples: guesses behind them were wrong, so what was computed of those
        is taken back; their blocks stay. Rows of sequences that have finished meanwhile are ignored. Plans are
        committed in the order they were made.
        """
        oldest = self._in_flight.popleft()
        assert oldest is plan, "plans are committed in their order"
        token_ids = iter(token_lists)
        for sequence, start, num_new, num_samples in zip(
            plan.sequences, plan.starts, plan.num_new, plan.num_samples, strict=True
        ):
            sequence.num_in_flight -= 1
            is_running = sequence.state is RUNNING
            end = start + num_new
            if num_samples:
                sequence.num_pending -= 1
                accepted = next(token_ids)
                if is_running:
                    sequence.token_ids += accepted
                if num_samples > 1:
                    end -= num_samples - len(accepted)
                    sequence.num_computed = end
            if end >= sequence.next_full:
                self.blocks.index(sequence, end)
            if not (is_running or sequence.num_in_flight) and sequence.state is SequenceState.FINISHED:
                self.blocks.release(sequence)
        assert next(token_ids, None) is None, "more lists than rows that sample"
        for i in range(plan.num_decodes, len(plan.sequences)):
            self._landing.land(plan.sequences[i], plan.starts[i], plan.num_new[i])

    def discard(self) -> list[Sequence]:
        """Forget every launched step, as after one that failed; return the sequences that had a row in them.

        Those still running wait again and compute anew; the next plan names them as preempted. Nothing of the steps
        has reached the prefix cache.
        """
        touched = dict.fromkeys(sequence for plan in self._in_flight for sequence in plan.sequences)
        self._in_flight.clear()
        self._landing.clear()
        for sequence in touched:
            sequence.num_in_flight = sequence.num_pending = 0
            if sequence.state is RUNNING:
                self._unseat(sequence)
                self.blocks.release(sequence)
                self._queue(sequence)
                sequence.num_preemptions += 1
                self._unreported.append(sequence)
            elif sequence.state is SequenceState.FINISHED:
                self.blocks.release(sequence)
        return list(touched)

    # -- ways out -----------------------------------------------------------------------------------------

    def hold(self, sequence: Sequence) -> None:
        """Take a running sequence out of plans and keep its blocks until `finish`."""
        assert sequence.state is RUNNING, sequence
        self._unseat(sequence)
        sequence.state = SequenceState.HELD
        self.held.add(sequence)

    def finish(self, sequence: Sequence) -> None:
        """End a sequence in whatever state it is; again is harmless.

        Its blocks are given back now, or when its last launched step is committed.
        """
        state = sequence.state
        if state is SequenceState.FINISHED:
            return
        if state is RUNNING:
            self._unseat(sequence)
        elif state is SequenceState.WAITING:
            self._remove(self.waiting, sequence)
            if self.host is not None:
                self.host.forget(sequence)
        elif state is SequenceState.RECEIVING:
            self.receiving.remove(sequence)
            self._refused.discard(sequence)
        elif state is SequenceState.HELD:
            self.held.remove(sequence)
        sequence.state = SequenceState.FINISHED
        if not sequence.num_in_flight:
            self.blocks.release(sequence)

    # -- planning -----------------------------------------------------------------------------------------

    def _plan_decodes(self, plan: StepPlan) -> list[Sequence]:
        """Find every running sequence a slot, in order; plan those that lack one token, return those that lack more.

        The loop of 256 iterations, hence written out: it is `StepPlan.add` for rows known to be of one token.
        """
        sequences, starts = plan.sequences, plan.starts
        longer: list[Sequence] = []
        left_out = self._left_out()
        for sequence in self.running:  # preemption only shortens it, behind the one that asks
            if left_out and sequence in left_out:
                continue
            num_tokens = len(sequence.token_ids) + sequence.num_pending
            if num_tokens >= sequence.max_len:
                continue  # its last token is on the way; nothing comes after
            start = sequence.num_computed
            if sequence.num_slots <= start:
                if not self._make_room(sequence, plan):
                    continue
                self.blocks.grow_by_one(sequence)
            if num_tokens - start != 1:
                longer.append(sequence)
                continue
            sequence.num_computed = num_tokens
            sequence.num_pending += 1
            sequence.num_in_flight += 1
            sequences.append(sequence)
            starts.append(start)
        plan.num_decodes = plan.num_tokens = num = len(sequences)
        plan.num_new = [1] * num
        plan.num_samples = [1] * num
        return longer

    def _left_out(self) -> set[Sequence]:
        """Find the running sequences that leave this step to other tenants."""
        pace = None if self.pace is None else self.pace.pace
        newcomer = None if pace is None else self._newcomer()
        if pace is None or not pace.target_s or (newcomer is None and len(self._seats) < 2):
            self._shares.has_newcomer = False
            return set()
        return self._shares.left_out(self.running, newcomer, pace)

    def _newcomer(self) -> Sequence | None:
        """Who is next in the queue, if its tenant has nothing running and there are a place and blocks for it."""
        sequence = self.waiting[0] if self.waiting and self.running else None
        if self._needy is not None:
            sequence = None if self._needy in self.receiving else self._needy
        if sequence is None or sequence.share.tenant in self._seats or len(self.running) >= self.config.max_num_seqs:
            return None
        num_kept = len(self.running) * self.reach.num_groups
        return sequence if self.pool.num_available >= self.blocks.num_missing(sequence) + num_kept else None

    def _room(self, plan: StepPlan) -> ChunkRoom:
        """Say what a step of these decodes has left for chunks."""
        num_left = self.config.max_num_batched_tokens - plan.num_tokens
        if not self.config.enable_chunked_prefill:
            return ChunkRoom(num_left)
        if plan.num_tokens and self.max_prefill_chunk is not None:
            num_left = min(num_left, max(1, self.max_prefill_chunk))
        if self.pace is None or not (self.waiting or len(self.running) > plan.num_tokens):
            return ChunkRoom(num_left)
        return self.pace.room(plan.num_tokens, sum(plan.starts), num_left, is_shared=self._shares.has_newcomer)

    def _plan_chunk(self, plan: StepPlan, sequence: Sequence, room: ChunkRoom) -> None:
        """Plan the next chunk of a running sequence, as far as the room and the blocks reach.

        It has a slot for one token already. More blocks are not worth a preemption.
        """
        start = sequence.num_computed
        num_new = room.most(start, sequence.num_tokens - start)
        if num_new <= 0:  # below 0: guesses are being verified, and how many are right is not known
            return
        num_new = self.blocks.grow(sequence, start + num_new) - start
        self._add_chunk(plan, sequence, num_new)
        room.take(start, num_new)

    def _plan_admissions(self, plan: StepPlan, room: ChunkRoom) -> None:
        """Admit from the queue, in order, while there are seats, room and blocks.

        The whole of a sequence must fit, with one more block for each running one, though only its first chunk is
        taken: else preemption would follow. Tokens are left only when every prompt begun has its blocks.

        Behind who finds no time, those go on whose KV has come: they hold their blocks and lack next to nothing.
        """
        at = num_deferred = num_found = 0
        is_late, needy = False, self._needy
        num_begun = len(self.running) - plan.num_tokens if room.is_timed else 0  # prompts, which decode soon
        crowding = self._crowding()
        while (
            room.num_left > 0
            and at < len(self.waiting)
            and num_deferred <= MAX_DEFERRED
            and num_found < MAX_BLOCKS_FOUND
        ):
            if at > MAX_PASSED and room.is_timed:
                return
            num_kept = len(self.running) * self.reach.num_groups
            num_seated = len(self.running) + (0 if self.host is None else self.host.num_loading)
            if num_seated >= self.config.max_num_seqs or self.pool.num_available < num_kept:
                return
            sequence = self.waiting[at]
            will_decode = sequence.max_len > len(sequence.token_ids) + 1
            if (
                (needy is not None and sequence is not needy)
                or (crowding and sequence.share.tenant == crowding)
                or (is_late and not sequence.num_slots)
                or (will_decode and room.seats <= num_begun)
                or (sequence.constraint is not None and not sequence.constraint.is_ready)
            ):
                at += 1
                continue
            known = self.blocks.known(sequence)
            num_known = len(known[0]) if known else 0
            num_found += num_known
            if self._landing.has_half_of(sequence, num_known):
                at += 1
                num_deferred += 1
                continue
            num_needed = self.blocks.num_needed(sequence, known)
            if self.pool.num_available < num_needed + num_kept:
                imported = self._last_imported()
                if self.running or self._in_flight or imported is None or imported is sequence:
                    return
                self._preempt(plan, imported)
                continue
            if self.host is not None and not sequence.num_slots:
                found = self.host.find(sequence, num_known)
                if found is Answer.LATER:
                    at += 1
                    num_deferred += 1
                    continue
                if isinstance(found, Found) and self._restore(self.host, sequence, known, found):
                    continue
            num_computed = max(sequence.num_computed, num_known * self.config.block_size)
            num_new = self._first_chunk_len(len(sequence.token_ids) - num_computed, num_computed, room)
            if not num_new:
                if not room.is_timed:
                    return
                is_late = True
                at += 1
                continue
            del self.waiting[at]
            needy = None
            sequence.state = RUNNING
            num_begun += will_decode
            plan.admitted.append(sequence)
            insort(self.running, sequence, key=_rank)
            self._seats[sequence.share.tenant] += 1
            self._turns.begin(sequence.rank[1])
            crowding = self._crowding()
            if not sequence.num_slots:
                self.blocks.share(sequence, known)
            self.blocks.grow(sequence, num_computed + num_new)
            self._add_chunk(plan, sequence, num_new)
            room.take(num_computed, num_new)

    def _restore(self, host: HostBlocks, sequence: Sequence, known: list[list[int]], found: Found) -> bool:
        """Have a waiting sequence's next blocks come back from the host; it stays out of plans until then.

        False: there are not enough, as what a window will have passed is held until the others are there.
        """
        shared = self.pool.num_unreferenced(block_id for table in known for block_id in table if block_id)
        if found.num_names > self.pool.num_available - shared:
            host.forget(sequence)
            return False
        self._remove(self.waiting, sequence)
        sequence.state = SequenceState.RECEIVING
        self.receiving.add(sequence)
        host.begin(sequence, self.blocks.expect_back(sequence, known, found.num_blocks, found.num_names))
        return True

    def _crowding(self) -> bytes:
        """The tenant that has all places but those kept for others, which are free for who comes; empty: none."""
        most = self.config.max_num_seqs - max(self.config.max_num_seqs // 8, 1)
        if not 0 < most <= len(self.running):
            return b""
        tenant, num = self._seats.most_common(1)[0]
        return tenant if num >= most else b""

    def _first_chunk_len(self, num_lacking: int, start: int, room: ChunkRoom) -> int:
        """How many of the tokens that a sequence lacks fit the room.

        Without chunked prefill all or none, except for what is longer than any step.
        """
        is_whole = not self.config.enable_chunked_prefill and num_lacking <= self.config.max_num_batched_tokens
        return 0 if is_whole and num_lacking > room.num_left else room.most(start, num_lacking)

    def _add_chunk(self, plan: StepPlan, sequence: Sequence, num_new: int) -> None:
        if num_new > 1 and self.cache is not None:
            self._landing.launch(sequence, sequence.num_computed, num_new)
        plan.add(sequence, num_new, int(sequence.num_computed + num_new == sequence.num_tokens))

    # -- room ---------------------------------------------------------------------------------------------

    def _make_way(self, plan: StepPlan) -> Sequence | None:
        """Where blocks are short, have sequences preempted whose tenant holds more than its part of them.

        They are for the rows of others, and for the first of the queue, or of those that receive, whose tenant holds less,
        which is returned.
        """
        if not (self.running and self.running[0].share.tenant):
            return None  # nobody is told apart
        num_kept = len(self.running) * self.reach.num_groups
        comers = [*self._refused, *self.waiting[:MAX_PASSED]]
        if self.pool.num_available >= num_kept + max(
            map(self.blocks.num_missing, comers[: len(self._refused) + 1]), default=0
        ):
            return None
        shares = BlockShares(self.running)
        needy = None
        if len(self.running) < self.config.max_num_seqs:
            needy = next((each for each in comers if shares.is_within(each)), None)
        num_wanted = sum(each.num_slots <= each.num_computed for each in self.running) * self.reach.num_groups
        if needy is not None:
            num_wanted += num_kept + self.blocks.num_missing(needy)
        while self.pool.num_available < num_wanted and (victim := shares.victim(needy)) is not None:
            if self._in_flight:
                self._must_collect = True
                break
            shares.give_up(victim)
            self._preempt(plan, victim)
        return needy

    def _make_room(self, sequence: Sequence, plan: StepPlan) -> bool:
        """Have a block available for each KV group, by preempting the last by rank.

        False if that is the sequence itself, or a step is in flight, which may write in any victim's blocks: the next
        plan waits for it.
        """
        while self.pool.num_available < self.blocks.num_groups:
            if self._in_flight:
                self._must_collect = True
                return False
            victim = self.running[-1]
            imported = self._last_imported()
            if imported is not None and imported.rank > victim.rank:
                victim = imported
            self._preempt(plan, victim)
            if victim is sequence:
                return False
        return True

    def _last_imported(self) -> Sequence | None:
        """The last of the queue that holds blocks: imported ones, as nothing else waits with blocks."""
        return next((sequence for sequence in reversed(self.waiting) if sequence.num_slots), None)

    def _preempt(self, plan: StepPlan, sequence: Sequence) -> None:
        """Take a sequence's blocks. It waits again, first of its arrival, and computes what is not cached."""
        assert not sequence.num_in_flight, sequence
        if sequence.state is RUNNING:
            self._unseat(sequence)
            self._queue(sequence)
        self.blocks.release(sequence)
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        plan.preempted.append(sequence)

    # -- queues -------------------------------------------------------------------------------------------

    def _enter(self, sequence: Sequence) -> None:
        """Check a new sequence against context and pool, give it its rank, hash its prompt."""
        assert 0 < len(sequence.token_ids) < sequence.max_len <= self.config.max_model_len, sequence
        num_blocks = self.reach.num_held(sequence.max_len - 1)  # the last token's KV is never needed
        if num_blocks > self.pool.num_total:
            raise ContextTooLong(
                f"{sequence.num_prompt_tokens} prompt tokens and up to {sequence.max_len - sequence.num_prompt_tokens} "
                f"new ones need {num_blocks} KV blocks, and the cache has {self.pool.num_total}. Shorten the prompt, "
                f"lower max_tokens, or give the cache more memory.",
                field="max_tokens",
            )
        if sequence.arrival is None:
            sequence.arrival = self._num_arrivals
            self._num_arrivals += 1
        turn = self._turns.take(sequence.share, min(sequence.max_len, len(sequence.token_ids) + _LONG))
        sequence.rank = (sequence.priority, turn, sequence.arrival)
        self.blocks.hash(sequence)

    def _queue(self, sequence: Sequence) -> None:
        sequence.state = SequenceState.WAITING
        insort(self.waiting, sequence, key=_rank)

    def _unseat(self, sequence: Sequence) -> None:
        self._remove(self.running, sequence)
        self._seats[sequence.share.tenant] -= 1
        if not self._seats[sequence.share.tenant]:
            del self._seats[sequence.share.tenant]

    def _remove(self, ranked: list[Sequence], sequence: Sequence) -> None:
        at = bisect_left(ranked, sequence.rank, key=_rank)
        while ranked[at] is not sequence:  # callers may give equal arrivals
            at += 1
        del ranked[at]
