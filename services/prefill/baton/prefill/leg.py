"""PrefillLeg: compute a prompt, answer its first token, hold its KV for the ticket.

The stations of a request
    begin       queued in the engine; its ticket is offered at once, so that a fetch can attach before there is KV
    computing   after each step the blocks that became full are published: they travel while later chunks run
    answered    the first token goes to the router, and with the last block to the decode worker; the engine is done
    held        the published blocks stay, each with a reference of its own, for as long as the ticket is open
    released    fetched, cancelled, expired or failed: the references are dropped, nothing is left

Published blocks carry their own references because what happens to the sequence (preemption, an abort) must never
let a block be overwritten that the exporter still reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.engine.engine import Engine, TokenOutput
from baton.errors import BatonError
from baton.kvtransfer.exporter import Exporter
from baton.messages import Leg as LegName
from baton.messages import Ticket
from baton.worker.handover import FirstToken
from baton.worker.runs import Outbox, Run, Runs


class WrongTicket(BatonError):
    """A ticket for another worker, or for another layout than this worker's."""

    retryable = True


@dataclass(slots=True, eq=False)
class _Export:
    run: Run
    ticket: Ticket | None
    choice: int
    block_ids: list[int] = field(default_factory=list)
    """Published, each with a reference of ours."""
    is_computed: bool = False
    is_given_up: bool = False
    """Nobody will fetch it any more; the exporter has not let go yet."""


class PrefillLeg:
    """Prompts for other workers."""

    name: LegName = "prefill"

    def __init__(
        self, engine: Engine, exporter: Exporter, runs: Runs, outbox: Outbox, *, layout: str, incarnation: str
    ) -> None:
        self._engine = engine
        self._exporter = exporter
        self._runs = runs
        self._outbox = outbox
        self._layout = layout
        self._incarnation = incarnation
        self._computing: dict[Run, _Export] = {}
        self._by_ticket: dict[tuple[bytes, int], _Export] = {}

    def begin(self, run: Run) -> None:
        """Queue the prompt and offer its ticket."""
        start, ticket = run.start, run.start.ticket
        if ticket is not None and (ticket.layout, ticket.source_incarnation) != (self._layout, self._incarnation):
            raise WrongTicket("the ticket is for another worker or another KV layout")
        lead = start.choices[0]
        self._engine.add(
            run.engine_id,
            start.token_ids,
            start.params,
            choices={lead.index: lead.emitted},
            seed=start.seed,
            priority=start.priority,
            salt=start.salt,
            holds_prompt=True,
        )
        export = self._computing[run] = _Export(run, ticket, lead.index)
        if ticket is not None:
            try:
                self._exporter.offer(ticket)
            except Exception:
                del self._computing[run]
                self._engine.abort(run.engine_id)
                raise
            self._by_ticket[ticket.request_id, ticket.epoch] = export

    def take(self, run: Run, output: TokenOutput) -> None:
        """Answer the first token, publish what is left, end the engine's part."""
        self._outbox.token(run, output)
        run.is_over = True  # for the router; the ticket is open still
        export = self._computing[run]
        self._publish(export)
        first = FirstToken(export.choice, output.token_id, output.position, output.finish_reason is not None)
        if export.ticket is not None:
            self._exporter.finish(export.ticket.request_id, export.ticket.epoch, first.encode())
        self._end_computing(export)

    def stop(self, run: Run) -> None:
        """Stop computing, and withdraw the ticket; its blocks come back with the exporter's word."""
        export = self._computing.get(run)
        if export is not None:
            self._end_computing(export)
        ticket = run.start.ticket
        if ticket is not None:
            held = self._by_ticket.get((ticket.request_id, ticket.epoch))
            if held is not None:
                held.is_given_up = True
            self._exporter.withdraw(ticket.request_id, ticket.epoch)

    def stop_choice(self, run: Run, choice: int) -> None:
        """Nothing to do: only one choice has a leg here."""

    def advance(self) -> bool:
        """Publish what the last step computed; take back what was released."""
        for export in self._computing.values():
            self._publish(export)
        released_now = self._exporter.events()
        for released in released_now:
            export = self._by_ticket.pop((released.request_id, released.epoch))
            self._engine.pool.release(export.block_ids)
            export.block_ids = []
            export.ticket = None
            if export.is_computed:
                self._runs.close(export.run)
        return bool(released_now)

    def stranded_blocks(self) -> int:
        """Count the blocks of tickets that were given up. What waits to be fetched is not stranded: it has a lease."""
        return sum(len(export.block_ids) for export in self._by_ticket.values() if export.is_given_up)

    def _publish(self, export: _Export) -> None:
        """Hand the exporter the prompt's blocks that were computed since the last time."""
        if export.ticket is None:
            return
        block_ids, names = self._engine.computed(export.run.engine_id)
        if block_ids:
            self._engine.pool.share(block_ids)
            export.block_ids += block_ids
            self._exporter.publish(export.ticket.request_id, export.ticket.epoch, block_ids, names)

    def _end_computing(self, export: _Export) -> None:
        del self._computing[export.run]
        export.is_computed = True
        self._engine.abort(export.run.engine_id)
        if export.ticket is None:
            self._runs.close(export.run)
