"""GenerationFlow: one prompt's way through its legs, whatever happens to them, and the text that comes of it.

Stations
    place      the dispatcher names a decode worker and, where it pays, a prefill worker; both get a Start at once
    take       tokens come, numbered: the first from the prefill worker, the rest from the decode worker; each is
               checked against what is known, becomes text, and goes to the sink
    replay     a worker died, drains or failed: close the epoch, and Start again elsewhere with what was emitted
    end        every choice ended, or the client left, or the deadline passed, or no replay is left: one way out

Whatever order messages come in, the sink sees each position of each choice once, in order. Nothing here waits.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from baton.errors import BatonError, InvalidRequest, Unavailable
from baton.logs import get_logger
from baton.messages import Cancel, ChoiceStart, Ended, LegError, Start, Ticket, Token
from baton.protocol import SamplingParams
from baton.router.policy import Decision
from baton.router.pool import Worker
from baton.router.timeline import RequestRecord, RequestState
from baton.router.workers import WorkerGone

if TYPE_CHECKING:
    from baton.router.dispatch import Dispatcher

_log = get_logger("flow")
_MAX_EARLY = 4096
"""Tokens kept while an earlier one is still on its way from another worker."""
_USERS_KINDS = ("invalid_request", "context_too_long", "unsupported")
_BUSY_KINDS = ("queue_full", "out_of_blocks")


class DeadlinePassed(BatonError):
    """The request's time is over."""

    status = 504
    retryable = True


class WorkersFailed(BatonError):
    """The request failed on several workers."""

    status = 503
    retryable = True


class ChoiceText(Protocol):
    """What one choice's tokens become. The flow never looks into what is shown."""

    def push(self, token_id: int, finish_reason: str | None) -> tuple[Any, str | None]:
        """Take a token; return what can be shown by now, and the stop string if one has ended the choice."""
        ...


class Usage(NamedTuple):
    """Tokens of one prompt and its choices, however many workers took part."""

    num_prompt: int
    num_cached: int
    """Tokens of the prompt that were not computed for this request."""
    num_completion: int


class Sink(Protocol):
    """Who takes an answer: a stream or a collector. Calls never block and never raise."""

    def push(
        self, choice: int, shown: Any, token: Token, finish_reason: str | None, stop_reason: int | str | None
    ) -> None:
        """Take one token, what the choice's text shows for it, and the end of the choice if it is one."""
        ...

    def end(self, usage: Usage) -> None:
        """Every choice has ended."""
        ...

    def fail(self, error: BatonError) -> None:
        """The request has failed; nothing follows."""
        ...


@dataclass(slots=True)
class Generation:
    """What is asked for: one prompt and how to go on from it. Fixed over replays."""

    prompt_ids: list[int]
    params: SamplingParams
    salt: bytes = b""
    priority: int = 0
    deadline: float | None = None
    """Unix time, seconds."""
    public_id: str = ""
    """What the client sees; never a key between services."""
    seed: int = field(default=0)
    hashes: dict[tuple[str, ...], list[bytes]] = field(default_factory=dict)
    """The prompt's block hashes by cache parts, as far as they are known."""

    def __post_init__(self) -> None:
        if self.params.seed is not None:
            self.seed = self.params.seed
        else:  # minted once, so that a replay samples the same
            self.seed = int.from_bytes(os.urandom(8), "little") >> 1


class _Choice:
    __slots__ = ("early", "emitted", "index", "is_done", "last_at", "text")

    def __init__(self, index: int, text: ChoiceText) -> None:
        self.index = index
        self.text = text
        self.emitted: list[int] = []
        self.early: dict[int, Token] = {}
        self.is_done = False
        self.last_at = 0.0


class GenerationFlow:
    """One request through its legs."""

    __slots__ = (
        "_choices",
        "_decode",
        "_decode_gave_token",
        "_dispatcher",
        "_metrics",
        "_num_open",
        "_num_prompt",
        "_prefill",
        "_prefill_gave_token",
        "_retry",
        "_sink",
        "_timer",
        "arrived_at",
        "decision",
        "epoch",
        "first_token_at",
        "generation",
        "is_over",
        "num_cached",
        "num_replays",
        "record",
        "request_id",
        "sent_at",
    )

    def __init__(self, dispatcher: Dispatcher, generation: Generation, texts: Sequence[ChoiceText], sink: Sink) -> None:
        self.request_id = uuid.uuid4().hex
        self.generation = generation
        self.epoch = 0
        self.num_replays = 0
        self.num_cached = 0
        """Prompt tokens that were not computed for this request, wherever they lay."""
        self.decision: Decision | None = None
        self.arrived_at = time.monotonic()
        self.record = RequestRecord(self.request_id, generation.public_id, len(generation.prompt_ids), self.arrived_at)
        self.sent_at = 0.0
        self.first_token_at = 0.0
        self.is_over = False
        self._dispatcher = dispatcher
        self._metrics = dispatcher.metrics
        self._sink = sink
        self._num_prompt = len(generation.prompt_ids)
        self._choices = [_Choice(i, text) for i, text in enumerate(texts)]
        self._num_open = len(self._choices)
        self._prefill: Worker | None = None
        self._decode: Worker | None = None
        self._prefill_gave_token = False
        self._decode_gave_token = False
        self._timer: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None

    # -- what others may know ------------------------------------------------------------------------------

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self._num_prompt

    @property
    def num_completion_tokens(self) -> int:
        """Tokens given to the client, over all choices."""
        return sum(len(choice.emitted) for choice in self._choices)

    @property
    def has_token(self) -> bool:
        """Whether anything was given to the client."""
        return self.first_token_at > 0

    @property
    def longest_emitted(self) -> int:
        """Tokens of the choice that has most: what a replay would compute beside the prompt."""
        return max(len(choice.emitted) for choice in self._choices)

    def waits_for(self, worker: Worker) -> bool:
        """Whether the next token is this worker's to give."""
        return worker is self._decode or (worker is self._prefill and not self._prefill_gave_token)

    # -- begin --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Send the legs, or wait for a worker; everything else follows by itself."""
        deadline = self.generation.deadline
        if deadline is not None:
            delay = max(deadline - time.time(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(delay, self._on_deadline)
        self.place()

    def place(self, avoid: Worker | None = None) -> None:
        """Pick workers and send the legs; park when no worker is there."""
        self._retry = None
        while not self.is_over:
            decision = self._dispatcher.route(self, avoid)
            if decision is None:
                self._dispatcher.park(self)
                return
            lost = self._send_legs(decision)
            if lost is None:
                return
            self._leave_workers()
            self.epoch += 1
            self._dispatcher.pool.lose(lost, "takes no messages")

    def _send_legs(self, decision: Decision) -> Worker | None:
        """Send a Start to each leg's worker; give the one that did not take it."""
        workers = self._dispatcher.pool.workers
        decode = workers[decision.chosen.decode]
        prefill = workers[decision.chosen.prefill] if decision.chosen.prefill else None
        self.decision = decision
        ticket = None if prefill is None else self._mint_ticket(prefill)
        legs = [(decode, self._start("decode", ticket))]
        if prefill is not None:
            legs.append((prefill, self._start("prefill", ticket)))
        self._decode, self._prefill = decode, prefill
        self._prefill_gave_token = self._decode_gave_token = False
        for worker, start in legs:
            try:
                worker.send(start)
            except WorkerGone:
                return worker
            worker.flows.add(self)
        now = time.monotonic()
        self.record.sent(self.epoch, decision.chosen, now)
        if self.sent_at == 0.0:
            self.sent_at = now
            self._metrics.request_queue_time_seconds.observe(self.sent_at - self.arrived_at)
            self._metrics.phase_seconds.observe("queue", self.sent_at - self.arrived_at)
        return None

    def _start(self, role: str, ticket: Ticket | None) -> Start:
        generation = self.generation
        return Start(
            self.request_id,
            self.epoch,
            "prefill" if role == "prefill" else "decode",
            generation.prompt_ids,
            [ChoiceStart(choice.index, choice.emitted) for choice in self._choices if not choice.is_done],
            generation.params,
            generation.seed,
            generation.priority,
            generation.deadline,
            generation.salt,
            ticket,
        )

    def _mint_ticket(self, prefill: Worker) -> Ticket:
        return Ticket(
            bytes.fromhex(self.request_id),
            self.epoch,
            os.urandom(16),
            prefill.info.layout,
            prefill.info.kv,
            prefill.info.incarnation,
            self._num_prompt,
        )

    # -- tokens -------------------------------------------------------------------------------------------

    def take(self, token: Token, worker: Worker, now: float) -> None:
        """Take one token from a worker, in whatever order."""
        if token.epoch != self.epoch or not (worker is self._decode or worker is self._prefill):
            self._metrics.stale_messages.inc()
            return
        if not 0 <= token.choice < len(self._choices):
            self._replay("integrity", worker)
            return
        choice = self._choices[token.choice]
        if worker is self._decode:
            self._decode_gave_token = True
        else:
            self._prefill_gave_token = True
        if choice.is_done:  # ended here, by a stop string; the worker will hear of it
            return
        at = token.position - self._num_prompt
        expected = len(choice.emitted)
        if at == expected:
            self._accept(choice, token, now)
            if choice.early and not self.is_over:
                self._accept_early(choice, now)
        elif at > expected:
            self._keep_early(choice, token, at)
        elif at < 0 or choice.emitted[at] != token.token_id:
            # two workers disagree on a token that the client has: one of them computed on wrong KV
            self._metrics.kv_integrity_failures.inc()
            _log.error("integrity_failure", request_id=self.request_id, position=token.position)
            self._replay("integrity", worker)

    def _accept(self, choice: _Choice, token: Token, now: float) -> None:
        metrics = self._metrics
        choice.emitted.append(token.token_id)
        metrics.generation_tokens.value += 1
        if choice.last_at:
            metrics.inter_token_latency_seconds.observe(now - choice.last_at)
        elif not self.first_token_at:
            self._note_first_token(token, now)
        choice.last_at = now
        finish_reason: str | None = token.finish_reason
        stop_reason: int | str | None = token.stop_reason
        shown, stop = choice.text.push(token.token_id, finish_reason)
        if stop is not None:
            finish_reason, stop_reason = "stop", stop
        self._sink.push(choice.index, shown, token, finish_reason, stop_reason)
        if finish_reason is not None:
            self._close_choice(choice, finish_reason, is_known_to_worker=stop is None)

    def _note_first_token(self, token: Token, now: float) -> None:
        self.first_token_at = now
        self.num_cached = min(token.num_cached, self._num_prompt)
        self._metrics.prefix_cache_queries.value += self._num_prompt
        self._metrics.prefix_cache_hits.value += self.num_cached
        self._metrics.time_to_first_token_seconds.observe(now - self.arrived_at)
        self._metrics.phase_seconds.observe("first_token", now - self.sent_at)
        self.record.first_token(now, self.num_cached)
        self._dispatcher.on_first_token(self)

    def _keep_early(self, choice: _Choice, token: Token, at: int) -> None:
        """Keep a token whose predecessor is on its way from the prefill worker; else there is a gap."""
        is_awaited = self._prefill is not None and not self._prefill_gave_token
        if is_awaited and choice.index == 0 and len(choice.early) < _MAX_EARLY:
            choice.early[at] = token
        else:
            self._replay("gap", self._decode)

    def _accept_early(self, choice: _Choice, now: float) -> None:
        while not choice.is_done and not self.is_over:
            token = choice.early.pop(len(choice.emitted), None)
            if token is None:
                break
            self._accept(choice, token, now)
        if choice.early and not choice.is_done and not self.is_over:
            self._replay("gap", self._decode)

    def _close_choice(self, choice: _Choice, finish_reason: str, *, is_known_to_worker: bool) -> None:
        choice.is_done = True
        choice.early.clear()
        self._num_open -= 1
        self._metrics.request_success.inc(finish_reason)
        # what the prefill worker saw end, or a stop string ended, still runs on the decode worker
        if self._num_open == 0:
            self._finish("finished", cancel_decode=not (is_known_to_worker and self._decode_gave_token))
            self._sink.end(Usage(self._num_prompt, self.num_cached, self.num_completion_tokens))
        elif not is_known_to_worker:
            self._tell(self._decode, Cancel(self.request_id, self.epoch, choice.index))

    # -- failures -----------------------------------------------------------------------------------------

    def take_ended(self, ended: Ended, worker: Worker) -> None:
        """Take a leg's failure."""
        if ended.epoch != self.epoch or not (worker is self._decode or worker is self._prefill):
            self._metrics.stale_messages.inc()
            return
        error = ended.error
        if not error.retryable:
            self.fail(_error_of(error, self.request_id))
        elif worker is self._prefill and self._decode_gave_token:
            self._forget_prefill()  # its KV has arrived already
        else:
            delay = 0.05 * 4**self.num_replays if error.kind in _BUSY_KINDS else 0.0
            self._replay(error.kind, worker, delay)

    def take_loss(self, worker: Worker) -> None:
        """Take the loss of a worker that ran a leg."""
        if worker is self._prefill and worker is not self._decode:
            if self._decode_gave_token:
                self._forget_prefill()
            else:
                self._replay("prefill_lost", worker)
        elif worker is self._decode:
            self._replay("decode_lost", worker)

    def _replay(self, reason: str, avoid: Worker | None, delay: float = 0.0) -> None:
        """Run what is left under a higher epoch; what comes from the old one is dropped from here on."""
        if self.is_over:
            return
        self._metrics.replays.inc(reason)
        self.record.replayed(reason, time.monotonic())
        self._leave_workers()
        self.epoch += 1
        if reason != "draining":  # a worker that drains hands over; nothing failed
            self.num_replays += 1
        if self.num_replays > self._dispatcher.config.max_replays:
            self.fail(WorkersFailed(f"The request failed on {self.num_replays} workers, the last time by {reason}."))
            return
        _log.info("replay", request_id=self.request_id, epoch=self.epoch, reason=reason)
        for choice in self._choices:
            choice.early.clear()
        if delay:
            self._retry = asyncio.get_running_loop().call_later(delay, self.place, avoid)
        else:
            self.place(avoid)

    def fail(self, error: BatonError) -> None:
        """End with an error that the client sees."""
        if self.is_over:
            return
        self._metrics.request_success.inc("error")
        self.record.status = error.status
        self._finish("failed", cancel_decode=True)
        self._sink.fail(error)

    def cancel(self) -> None:
        """End because nobody waits for the answer."""
        if self.is_over:
            return
        self._metrics.request_success.inc("abort")
        self._finish("cancelled", cancel_decode=True)

    def _on_deadline(self) -> None:
        self.fail(DeadlinePassed("The request's deadline has passed. Ask for fewer tokens, or allow more time."))

    # -- the one way out ----------------------------------------------------------------------------------

    def _finish(self, state: RequestState, *, cancel_decode: bool) -> None:
        self.is_over = True
        for timer in (self._timer, self._retry):
            if timer is not None:
                timer.cancel()
        self._leave_workers(cancel_decode=cancel_decode)
        now = time.monotonic()
        self.record.end(state, self.num_completion_tokens, now)
        self._metrics.e2e_request_latency_seconds.observe(now - self.arrived_at)
        if self.has_token:
            self._metrics.phase_seconds.observe("generate", now - self.first_token_at)
        self._metrics.prompt_tokens.value += self._num_prompt
        self._dispatcher.on_flow_over(self)

    def _leave_workers(self, *, cancel_decode: bool = True) -> None:
        """Close the epoch on both workers: what they hold for it is free."""
        cancel = Cancel(self.request_id, self.epoch)
        decode, prefill = self._decode, self._prefill
        self._decode = self._prefill = None
        for worker, needs_cancel in ((decode, cancel_decode), (prefill, True)):
            if worker is not None and self in worker.flows:
                worker.flows.discard(self)
                if needs_cancel:
                    self._tell(worker, cancel)

    def _forget_prefill(self) -> None:
        if self._prefill is not None:
            self._prefill.flows.discard(self)
            self._prefill = None

    def _tell(self, worker: Worker | None, cancel: Cancel) -> None:
        """Send a Cancel; a worker that does not take it is found dead by its silence."""
        if worker is None or not worker.is_live:
            return
        try:
            worker.send(cancel)
        except WorkerGone:
            _log.info("cancel_not_taken", worker_id=worker.info.worker_id, request_id=self.request_id)


def _error_of(error: LegError, request_id: str) -> BatonError:
    """Give a worker's error as the client may see it."""
    if error.kind in _USERS_KINDS:
        code = "context_length_exceeded" if error.kind == "context_too_long" else None
        return InvalidRequest(error.message, field=error.field, code=code)
    if error.kind == "deadline":
        return DeadlinePassed("The request's deadline has passed. Ask for fewer tokens, or allow more time.")
    if error.kind in _BUSY_KINDS:
        return Unavailable(f"No worker can take the request now: {error.kind}. Try again later.")
    _log.error("leg_failed", request_id=request_id, kind=error.kind, reason=error.message)
    return BatonError("The request failed inside a worker. Its reason is in the log under the request's id.")
