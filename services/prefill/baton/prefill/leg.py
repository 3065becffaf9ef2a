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
from enum import Enum, auto

from baton.engine.engine import Engine, TokenOutput
from baton.errors import BatonError
from baton.kvtransfer.exporter import Exporter
from baton.kvtransfer.wire import Key
from baton.messages import Leg as LegName
from baton.messages import Ticket
from baton.prefill.outlook import Outlook
from baton.worker.handover import FirstToken
from baton.worker.runs import Outbox, Run, Runs


class WrongTicket(BatonError):
    """A ticket for another worker, or for another layout than this worker's."""

    retryable = True


class State(Enum):
    """Where a prompt stands. Its ticket may be released at any point; without one the first token ends it.

              first token           Released
    COMPUTING ────────────> HELD ─────────────> closed
        │   stopped           │                    ^
        └────────────────> GIVEN_UP ───────────────┘
    """

    COMPUTING = auto()
    HELD = auto()
    GIVEN_UP = auto()
    """Nobody will fetch it any more; the exporter has not let go yet."""


@dataclass(slots=True, eq=False)
class _Prompt:
    run: Run
    ticket: Ticket | None
    """None: there was none, or it is released."""
    choice: int
    state: State = State.COMPUTING
    block_ids: list[int] = field(default_factory=list)
    """Published, each with a reference of ours."""

    @property
    def key(self) -> Key:
        """What the exporter knows it by."""
        assert self.ticket is not None
        return self.ticket.request_id, self.ticket.epoch


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
        self._prompts: dict[Run, _Prompt] = {}
        self._by_ticket: dict[Key, _Prompt] = {}
        self._outlook = Outlook(engine)

    def begin(self, run: Run) -> None:
        """Queue the prompt and offer its ticket."""
        start, ticket = run.start, run.start.ticket
        if ticket is not None and (ticket.layout, ticket.source_incarnation) != (self._layout, self._incarnation):
            raise WrongTicket("the ticket is for another worker or another KV layout")
        lead = start.choices[0]
        self._engine.add(
            run.engine_id,
            start.prompt,
            start.params,
            choices={lead.index: lead.emitted},
            seed=start.seed,
            priority=start.priority,
            salt=start.salt,
            share=start.share,
            holds_prompt=True,
        )
        prompt = _Prompt(run, ticket, lead.index)
        if ticket is not None:
            try:
                self._exporter.offer(ticket)
            except Exception:
                self._engine.abort(run.engine_id)
                raise
            self._by_ticket[prompt.key] = prompt
        self._prompts[run] = prompt

    def take(self, run: Run, output: TokenOutput) -> None:
        """Answer the first token, publish what is left, end the engine's part."""
        self._outbox.token(run, output)
        run.is_over = True  # for the router; the ticket is open still
        prompt = self._prompts[run]
        self._publish(prompt)
        if prompt.ticket is not None:
            first = FirstToken(prompt.choice, output.token_id, output.position, output.finish_reason is not None)
            self._exporter.finish(*prompt.key, first.encode())
        self._leave_engine(prompt, State.HELD)

    def stop(self, run: Run) -> None:
        """Stop computing, and withdraw the ticket; its blocks come back with the exporter's word."""
        prompt = self._prompts.get(run)
        if prompt is not None:
            self._leave_engine(prompt, State.GIVEN_UP)
            if prompt.ticket is not None:
                self._exporter.withdraw(*prompt.key)

    def stop_choice(self, run: Run, choice: int) -> None:
        """Nothing to do: only one choice has a leg here."""

    def advance(self) -> bool:
        """Publish what the last step computed; take back what was released."""
        for prompt in self._prompts.values():
            self._publish(prompt)
        self._foretell()
        released_now = self._exporter.events()
        for released in released_now:
            prompt = self._by_ticket.pop((released.request_id, released.epoch))
            self._engine.pool.release(prompt.block_ids)
            prompt.block_ids, prompt.ticket = [], None
            if prompt.state is not State.COMPUTING:
                self._close(prompt)
        return bool(released_now)

    def stranded_blocks(self) -> int:
        """Count the blocks of tickets that were given up. What waits to be fetched is not stranded: it has a lease."""
        return sum(len(it.block_ids) for it in self._by_ticket.values() if it.state is State.GIVEN_UP)

    def _foretell(self) -> None:
        """Have each ticket that is queued say how long its prompt will take."""
        for engine_id, num_ahead, seconds in self._outlook.look():
            run = self._runs.get(engine_id)
            prompt = None if run is None else self._prompts.get(run)
            if prompt is not None and prompt.ticket is not None and prompt.state is State.COMPUTING:
                self._exporter.foretell(*prompt.key, num_ahead, seconds)

    def _publish(self, prompt: _Prompt) -> None:
        """Pass on the prompt's blocks that were computed since the last time."""
        if prompt.ticket is None or prompt.state is not State.COMPUTING:
            return
        block_ids, names = self._engine.computed(prompt.run.engine_id)
        if block_ids:
            self._engine.pool.share(block_ids)
            prompt.block_ids += block_ids
            self._exporter.publish(*prompt.key, block_ids, names)

    def _leave_engine(self, prompt: _Prompt, state: State) -> None:
        if prompt.state is State.COMPUTING:
            self._engine.abort(prompt.run.engine_id)
        prompt.state = state
        if prompt.ticket is None:
            self._close(prompt)

    def _close(self, prompt: _Prompt) -> None:
        del self._prompts[prompt.run]
        self._runs.close(prompt.run)
