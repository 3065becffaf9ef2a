"""DecodeLeg: get a prompt's KV, by receiving or computing, and generate to the end.

The stations of a request
    begin       without a ticket: queued in the engine, which computes what its prefix cache lacks
    receiving   with one: blocks that the prefix cache has are shared, a source is asked for the others; places are
                granted as there are free blocks, a window ahead of what has landed (`State`)
    running     tokens go to the router until each choice ends
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import msgspec

from baton.decode.source import KVSource
from baton.engine.engine import Engine, TokenOutput
from baton.errors import BatonError
from baton.kvtransfer.imports import Fetched, FetchFailed, Landed
from baton.kvtransfer.wire import Key
from baton.logs import get_logger
from baton.messages import Leg as LegName
from baton.messages import LegError, Ticket, Transfer
from baton.worker.handover import FirstToken
from baton.worker.runs import Outbox, Run, Runs

WINDOW = 256
"""Blocks granted ahead of what has landed: 4,096 tokens, more than is on the way between any two workers."""

PATIENCE_S = 1.0
"""How long nothing may move before a fetch gives way: no prompt that is computed keeps its KV back for so long, unless
its worker has more of them than it can do."""
LOOK_S = 0.25
"""What counts of the time between two looks: where this process was stopped, or had no processor, much may have moved."""

log = get_logger("decode")


class State(Enum):
    """Where a receiving request stands.

              Fetched: goes on after the first token, which came along
    FETCHING ─────────────────────────────────────────────────────────> running in the engine
       │      FetchFailed: what is good is kept, the rest and the first token are computed here
       │ stopped
       v      Fetched or FetchFailed: nothing writes into its blocks any more
    LEAVING ──────────────────────────────────────────────────────────> closed
    """

    FETCHING = auto()
    LEAVING = auto()


@dataclass(slots=True, eq=False)
class _Receiving:
    run: Run
    key: Key
    num_wanted: int
    state: State = State.FETCHING
    num_granted: int = 0
    num_landed: int = 0
    stopped_choices: list[int] = field(default_factory=list)

    @property
    def is_starved(self) -> bool:
        """Whether it waits for blocks, not for KV."""
        return self.num_landed == self.num_granted < self.num_wanted


class DecodeLeg:
    """Requests that end on this worker."""

    name: LegName = "decode"

    def __init__(self, engine: Engine, source: KVSource, runs: Runs, outbox: Outbox) -> None:
        self._engine = engine
        self._source = source
        self._runs = runs
        self._outbox = outbox
        self._receiving: dict[Key, _Receiving] = {}
        self._looked_at = time.monotonic()
        self._still_s = 0.0
        """For how long nothing was seen to run or land."""

    def begin(self, run: Run) -> None:
        """Queue the request, or ask for its KV."""
        start = run.start
        if start.ticket is not None:
            self._receive(run, start.ticket)
            return
        self._engine.add(
            run.engine_id,
            start.prompt,
            start.params,
            choices=run.emitted,
            seed=start.seed,
            priority=start.priority,
            salt=start.salt,
            share=start.share,
        )

    def take(self, run: Run, output: TokenOutput) -> None:
        """Pass a token on; close the run with its last."""
        self._outbox.token(run, output)
        if not run.open_choices:
            self._runs.close(run)

    def stop(self, run: Run) -> None:
        """End the request; if its KV is on the way, once the source has let go."""
        receiving = self._receiving_of(run)
        if receiving is None:
            self._drop(run)
        else:
            receiving.state = State.LEAVING
            self._source.cancel(*receiving.key)

    def stop_choice(self, run: Run, choice: int) -> None:
        """End one of several choices."""
        receiving = self._receiving_of(run)
        if receiving is None:
            self._engine.finish(run.engine_id, choice)
        else:
            receiving.stopped_choices.append(choice)

    def advance(self) -> bool:
        """Take what the source says, and grant blocks."""
        events = self._source.events()
        for event in events:
            key = event.request_id, event.epoch
            match event:
                case Landed():
                    self._receiving[key].num_landed = event.num_blocks
                case Fetched() | FetchFailed():
                    self._on_end(self._receiving.pop(key), event)
        for receiving in self._receiving.values():
            if receiving.state is State.FETCHING:
                block_ids = self._places(receiving)
                if block_ids:
                    self._source.grant(*receiving.key, block_ids)
        self._give_way(has_moved=bool(events))
        return bool(events)

    def stranded_blocks(self) -> int:
        """Count the blocks of stopped requests that the source has not let go yet."""
        return sum(it.num_granted for it in self._receiving.values() if it.state is State.LEAVING)

    # -- what the engine is told of a receiving request ------------------------------------------------------

    def _wanted(self, run: Run) -> tuple[int, Sequence[bytes]]:
        """Take the request in; return how many of its blocks come before those that the prefix cache lacks, and their names."""
        start = run.start
        return self._engine.receive(
            run.engine_id,
            start.prompt,
            # who computed the prompt scored it
            start.params.replace(prompt_logprobs=None),
            choices=run.emitted,
            seed=start.seed,
            priority=start.priority,
            salt=start.salt,
            share=start.share,
        )

    def _places(self, receiving: _Receiving) -> list[int]:
        """Reserve the next blocks of a fetch, as far as the window and the pool reach."""
        room = min(receiving.num_wanted, receiving.num_landed + WINDOW) - receiving.num_granted
        block_ids = self._engine.reserve(receiving.run.engine_id, room) if room > 0 else []
        receiving.num_granted += len(block_ids)
        return block_ids

    def _admit(self, receiving: _Receiving, num_good: int, token_ids: Iterable[int] = ()) -> None:
        """Let it run with the first `num_good` of the wanted blocks."""
        run = receiving.run
        run.num_fetched = self._engine.admit(run.engine_id, num_good, token_ids)
        run.queued_at = time.monotonic()

    # -- receiving --------------------------------------------------------------------------------------------

    def _receive(self, run: Run, ticket: Ticket) -> None:
        from_block, names = self._wanted(run)
        receiving = _Receiving(run, (ticket.request_id, ticket.epoch), len(names))
        try:
            self._source.fetch(ticket, from_block, names, self._places(receiving))
        except (BatonError, ValueError) as error:
            log.warning("fetch_refused", request_id=run.start.request_id, reason=str(error))
            self._compute_rest(receiving, 0, "unreachable")
            return
        self._receiving[receiving.key] = receiving

    def _receiving_of(self, run: Run) -> _Receiving | None:
        ticket = run.start.ticket
        return None if ticket is None else self._receiving.get((ticket.request_id, ticket.epoch))

    def _give_way(self, *, has_moved: bool) -> None:
        """End the youngest fetch when nothing here goes on but by blocks that nothing else will free.

        At once where all fetches wait for blocks; after a while where some do, or the queue: then workers may wait for one
        another's blocks in a circle, as when they prefill for each other.
        """
        scheduler, now = self._engine.scheduler, time.monotonic()
        seen_s, self._looked_at = min(now - self._looked_at, LOOK_S), now
        self._still_s = 0.0 if has_moved else self._still_s + seen_s
        if not self._receiving or (scheduler.has_work and not scheduler.is_stuck):
            self._still_s = 0.0
            return
        fetching = [it for it in self._receiving.values() if it.state is State.FETCHING]
        starved = [it for it in fetching if it.is_starved]
        is_circle = bool(starved or scheduler.is_stuck) and self._still_s > PATIENCE_S
        if fetching and (is_circle or len(starved) == len(self._receiving)):
            self._source.cancel(*fetching[-1].key)

    def _on_end(self, receiving: _Receiving, event: Fetched | FetchFailed) -> None:
        run = receiving.run
        if receiving.state is State.LEAVING:
            self._drop(run)
        elif isinstance(event, FetchFailed):
            log.info("fetch_failed", request_id=run.start.request_id, reason=event.reason, num_blocks=event.num_blocks)
            self._compute_rest(receiving, event.num_blocks, event.reason)
        else:
            try:
                first = FirstToken.decode(event.meta)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                self._compute_rest(receiving, event.num_blocks, "meta")
                return
            self._go_on(receiving, event, first)

    def _go_on(self, receiving: _Receiving, event: Fetched, first: FirstToken) -> None:
        run, start = receiving.run, receiving.run.start
        self._admit(receiving, event.num_blocks, [first.token_id])
        nbytes = event.num_blocks * self._engine.memory.block_nbytes
        transfer = Transfer(
            start.request_id, start.epoch, event.incarnation, run.num_fetched, nbytes, event.seconds, event.exposed_s
        )
        self._outbox.transfer(run, transfer)
        if first.is_last:
            lead = start.choices[0].index
            run.open_choices.discard(lead)
            receiving.stopped_choices.append(lead)
        self._finish_choices(receiving)

    def _compute_rest(self, receiving: _Receiving, num_blocks: int, reason: str) -> None:
        """Go on with what is good: the rest, and the first token, are computed here."""
        run = receiving.run
        if run.start.params.prompt_logprobs is not None:
            # The scores of the prompt came, or did not, from the worker that failed: let the router decide.
            run.is_over = True
            self._outbox.ended(run, LegError("transfer", f"the prompt's KV did not arrive: {reason}", True))
            self._drop(run)
            return
        self._admit(receiving, num_blocks)
        self._finish_choices(receiving)

    def _finish_choices(self, receiving: _Receiving) -> None:
        """End the choices that were stopped while it was receiving."""
        run = receiving.run
        for choice in receiving.stopped_choices:
            self._engine.finish(run.engine_id, choice)
        if not run.open_choices:
            self._drop(run)

    def _drop(self, run: Run) -> None:
        self._engine.abort(run.engine_id)
        self._runs.close(run)
