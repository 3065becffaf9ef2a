"""DecodeLeg: get a prompt's KV, by fetching or computing, and generate to the end.

The stations of a request
    begin       without a ticket: queued in the engine, which computes what its prefix cache lacks
    fetching    with one: blocks that the prefix cache has are shared, the others asked for; places are granted as
                there are free blocks, a window ahead of what has landed
    admitted    all verified: goes on after the first token, which came along. Or the fetch failed: what is good of it
                is kept, the rest and the first token are computed here
    running     tokens go to the router until each choice ends
    cancelled   while fetching: the blocks are kept until the importer says that it writes into them no more
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import msgspec

from baton.engine.engine import Engine, TokenOutput
from baton.errors import BatonError
from baton.kvtransfer.importer import Importer
from baton.kvtransfer.receiving import Fetched, FetchFailed, Landed
from baton.logs import get_logger
from baton.messages import Leg as LegName
from baton.messages import LegError, Ticket, Transfer
from baton.worker.handover import FirstToken
from baton.worker.runs import Outbox, Run, Runs

WINDOW = 256
"""Blocks granted ahead of what has landed: 4,096 tokens, more than is on the way between any two workers."""

log = get_logger("decode")


@dataclass(slots=True, eq=False)
class _Import:
    run: Run
    ticket: Ticket
    num_wanted: int
    num_granted: int = 0
    num_landed: int = 0
    lead: int = 0
    stopped_choices: list[int] = field(default_factory=list)

    @property
    def is_starved(self) -> bool:
        """Whether it waits for blocks, not for KV."""
        return self.num_landed == self.num_granted < self.num_wanted


class DecodeLeg:
    """Requests that end on this worker."""

    name: LegName = "decode"

    def __init__(self, engine: Engine, importer: Importer, runs: Runs, outbox: Outbox) -> None:
        self._engine = engine
        self._importer = importer
        self._runs = runs
        self._outbox = outbox
        self._imports: dict[tuple[bytes, int], _Import] = {}
        self._fetched: dict[Run, int] = {}
        """Prompt tokens of a run whose KV came from elsewhere."""

    def begin(self, run: Run) -> None:
        """Queue the request, or ask for its KV."""
        start = run.start
        if start.ticket is not None:
            self._receive(run, start.ticket)
            return
        self._engine.add(
            run.engine_id,
            start.token_ids,
            start.params,
            choices=run.emitted,
            seed=start.seed,
            priority=start.priority,
            salt=start.salt,
        )

    def take(self, run: Run, output: TokenOutput) -> None:
        """Pass a token on; close the run with its last."""
        self._outbox.token(run, output, num_fetched=self._fetched.get(run, 0))
        if not run.open_choices:
            self._close(run)

    def stop(self, run: Run) -> None:
        """End the request; if its KV is on the way, once the importer has let go."""
        ticket = run.start.ticket
        if ticket is not None and (ticket.request_id, ticket.epoch) in self._imports:
            self._importer.cancel(ticket.request_id, ticket.epoch)
        else:
            self._engine.abort(run.engine_id)
            self._close(run)

    def stop_choice(self, run: Run, choice: int) -> None:
        """End one of several choices."""
        ticket = run.start.ticket
        importing = None if ticket is None else self._imports.get((ticket.request_id, ticket.epoch))
        if importing is None:
            self._engine.finish(run.engine_id, choice)
        else:
            importing.stopped_choices.append(choice)

    def advance(self) -> bool:
        """Take what the importer says, and grant blocks."""
        events = self._importer.events()
        for event in events:
            key = event.request_id, event.epoch
            match event:
                case Landed():
                    self._imports[key].num_landed = event.num_blocks
                case Fetched():
                    self._on_fetched(self._imports.pop(key), event)
                case FetchFailed():
                    self._on_failed(self._imports.pop(key), event)
        for importing in self._imports.values():
            self._grant(importing)
        self._give_way()
        return bool(events)

    def stranded_blocks(self) -> int:
        """Count the blocks of cancelled fetches that the importer has not let go yet."""
        return sum(i.num_granted for i in self._imports.values() if i.run.is_over)

    # -- fetching -----------------------------------------------------------------------------------------

    def _receive(self, run: Run, ticket: Ticket) -> None:
        start = run.start
        from_block, wanted = self._engine.receive(
            run.engine_id,
            start.token_ids,
            # who computed the prompt scored it
            start.params.replace(prompt_logprobs=None),
            choices=run.emitted,
            seed=start.seed,
            priority=start.priority,
            salt=start.salt,
        )
        importing = _Import(run, ticket, len(wanted), lead=start.choices[0].index)
        try:
            self._importer.fetch(ticket, from_block, wanted, self._places(importing))
        except (BatonError, ValueError) as error:  # no such source, or none that can be reached
            log.warning("fetch_refused", request_id=start.request_id, reason=str(error))
            self._admit_failed(importing, 0, "unreachable")
            return
        self._imports[ticket.request_id, ticket.epoch] = importing

    def _places(self, importing: _Import) -> list[int]:
        """Reserve the next blocks of a fetch, as far as the window and the pool reach."""
        room = min(importing.num_wanted, importing.num_landed + WINDOW) - importing.num_granted
        if room <= 0:
            return []
        block_ids = self._engine.reserve(importing.run.engine_id, room)
        importing.num_granted += len(block_ids)
        return block_ids

    def _grant(self, importing: _Import) -> None:
        if importing.run.is_over:
            return
        block_ids = self._places(importing)
        if block_ids:
            self._importer.grant(importing.ticket.request_id, importing.ticket.epoch, block_ids)

    def _give_way(self) -> None:
        """When fetches wait for one another's blocks and nothing else will free any, end the youngest fetch."""
        scheduler = self._engine.scheduler
        if scheduler.has_work:
            return
        alive = [importing for importing in self._imports.values() if not importing.run.is_over]
        if len(alive) == len(self._imports) and alive and all(i.is_starved for i in alive):
            self._importer.cancel(alive[-1].ticket.request_id, alive[-1].ticket.epoch)

    def _on_fetched(self, importing: _Import, event: Fetched) -> None:
        run = importing.run
        if run.is_over:
            self._engine.abort(run.engine_id)
            self._close(run)
            return
        try:
            first = FirstToken.decode(event.meta)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self._admit_failed(importing, event.num_blocks, "meta")
            return
        num_fetched = self._engine.admit(run.engine_id, event.num_blocks, [first.token_id])
        run.queued_at = time.monotonic()
        self._fetched[run] = num_fetched
        self._outbox.transfer(
            run,
            Transfer(
                run.start.request_id,
                run.start.epoch,
                importing.ticket.source_incarnation,
                num_fetched,
                event.num_blocks * self._engine.memory.block_nbytes,
                event.seconds,
                event.exposed_s,
            ),
        )
        stopped = importing.stopped_choices
        if first.is_last:
            run.open_choices.discard(importing.lead)
            stopped.append(importing.lead)
        self._finish_choices(run, stopped)

    def _on_failed(self, importing: _Import, event: FetchFailed) -> None:
        run = importing.run
        if run.is_over:
            self._engine.abort(run.engine_id)
            self._close(run)
            return
        log.info("fetch_failed", request_id=run.start.request_id, reason=event.reason, num_blocks=event.num_blocks)
        self._admit_failed(importing, event.num_blocks, event.reason)

    def _admit_failed(self, importing: _Import, num_blocks: int, reason: str) -> None:
        """Go on with what is good: the rest, and the first token, are computed here."""
        run = importing.run
        if run.start.params.prompt_logprobs is not None:
            # The scores of the prompt came, or did not, from the worker that failed: let the router decide.
            run.is_over = True
            self._outbox.ended(run, LegError("transfer", f"the prompt's KV did not arrive: {reason}", True))
            self._engine.abort(run.engine_id)
            self._close(run)
            return
        self._fetched[run] = self._engine.admit(run.engine_id, num_blocks)
        run.queued_at = time.monotonic()
        self._finish_choices(run, importing.stopped_choices)

    def _finish_choices(self, run: Run, choices: list[int]) -> None:
        for choice in choices:
            self._engine.finish(run.engine_id, choice)
        if not run.open_choices:
            self._engine.abort(run.engine_id)
            self._close(run)

    def _close(self, run: Run) -> None:
        self._fetched.pop(run, None)
        self._runs.close(run)
