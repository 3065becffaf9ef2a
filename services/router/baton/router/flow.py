"""Flow: a generation's tokens, from whatever workers give them, to what its client sees.

Knows no pool, no clock and no dispatcher: it takes what a worker said and returns what is to be done next. Whatever order
messages come in, the sink sees each position of each choice once, in order.
"""

from __future__ import annotations

import enum
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from baton.errors import BatonError, InvalidRequest, Unavailable
from baton.logs import get_logger
from baton.messages import ChoiceStart, Leg, LegError, Pool, Start, Ticket, Token, WorkerInfo
from baton.router.attempt import Attempt, Choice, Verdict
from baton.router.generation import Generation
from baton.router.sink import ChoiceText, Sink, Usage

_log = get_logger("flow")
_USERS_KINDS = ("invalid_request", "context_too_long", "unsupported")
_BUSY_KINDS = ("queue_full", "out_of_blocks")
_ACCEPTED, _LAST = Verdict.ACCEPTED, Verdict.LAST
_Shown = TypeVar("_Shown")
EndState = Literal["finished", "failed", "cancelled"]


class DeadlinePassed(BatonError):
    """The request's time is over."""

    status = 504
    retryable = True

    def __init__(self) -> None:
        super().__init__("The request's deadline has passed. Ask for fewer tokens, or allow more time.")


class Go(enum.Enum):
    """Nothing is to be done."""

    TOKEN = "token"
    """The client has one token more: what nearly every token leads to."""
    NOTHING_NEW = "nothing new"
    """Or more tokens than one, that had waited."""
    STALE = "stale"
    """The message belonged to a closed attempt: count it."""


@dataclass(frozen=True, slots=True)
class ChoiceOver:
    """One choice of several has ended."""

    choice: int
    finish_reason: str
    runs_on: bool
    """The decode worker does not know yet: a stop string ended it."""


@dataclass(frozen=True, slots=True)
class Replay:
    """The attempt failed: close it, and run what is left on other workers."""

    reason: str
    avoid: str | None
    """The worker that failed."""
    is_busy: bool = False
    """Wait a little before, and longer each time."""
    mismatch_at: int | None = None
    """The position at which two workers disagree."""


@dataclass(frozen=True, slots=True)
class Onward:
    """The attempt has all that it was made for: close it, and begin the next."""

    runs_on: bool
    """The decode worker does not know yet."""


@dataclass(frozen=True, slots=True)
class Over:
    """The request has ended."""

    state: EndState
    finish_reason: str
    """As it is counted: how the last choice ended, or "error"."""
    runs_on: bool = True
    """The decode worker does not know yet."""
    error: BatonError | None = None


class _Nobody:
    """The sink of a flow that is over."""

    def push(self, choice: int, shown: Any, token: Token, finish_reason: str | None, stop_reason: Any) -> None:
        raise AssertionError("a token for a flow that is over")

    def end(self, usage: Usage) -> None:
        raise AssertionError("a flow ends twice")

    def fail(self, error: BatonError) -> None:
        raise AssertionError("a flow fails after its end")


_NOBODY = _Nobody()
Next = Go | ChoiceOver | Replay | Onward | Over
"""What a flow asks of the dispatcher."""
GO, NOTHING_NEW, STALE = Go


class Flow(Generic[_Shown]):
    """One generation: its choices, their text and their sink."""

    # here and in `Running` and the sinks: a thousand streams are walked each step, and a dict for each object costs the cache
    __slots__ = (
        *("_choices", "_num_open", "_sink", "_texts"),
        *("attempt", "generation", "is_over", "params", "request_id", "usage"),
    )

    def __init__(self, generation: Generation, texts: Sequence[ChoiceText[_Shown]], sink: Sink[_Shown]) -> None:
        """`texts` has one entry a choice; `sink` takes what they show, which is not looked into here."""
        self.request_id = uuid.uuid4().hex
        self.generation = generation
        self.params = generation.params
        """What the next attempt asks of its workers."""
        self.attempt: Attempt | None = None
        self.usage = Usage(len(generation.prompt))
        self.is_over = False
        self._texts = texts
        self._sink = sink
        self._choices = [Choice(index) for index in range(len(texts))]
        self._num_open = len(texts)

    @property
    def num_emitted(self) -> int:
        """Tokens of the choice that has most."""
        return max(len(choice.tokens) for choice in self._choices)

    # -- an attempt ---------------------------------------------------------------------------------------

    def begin(self, decode: WorkerInfo, prefill: WorkerInfo | None, now: float) -> Sequence[tuple[str, Start | Pool]]:
        """Make the next attempt: what is left, after the tokens that the client has."""
        epoch = 0 if self.attempt is None else self.attempt.epoch + 1
        num_prompt, most = self.usage.num_prompt, self.params.max_tokens
        room = decode.model.max_model_len - num_prompt
        last_at = (room if most is None else min(most, room)) - 1
        if prefill is None:
            self.attempt = Attempt(epoch, num_prompt, self._choices, decode.worker_id, last_at=last_at)
            return [(decode.worker_id, self._start("decode", self.attempt, now))]
        ticket = Ticket(
            bytes.fromhex(self.request_id),
            epoch,
            os.urandom(16),
            prefill.layout,
            prefill.kv,
            prefill.incarnation,
            num_prompt,
        )
        self.attempt = Attempt(epoch, num_prompt, self._choices, decode.worker_id, prefill.worker_id, ticket, last_at)
        return [
            (decode.worker_id, self._start("decode", self.attempt, now)),
            (prefill.worker_id, self._start("prefill", self.attempt, now)),
        ]

    def _start(self, leg: Leg, attempt: Attempt, now: float) -> Start:
        generation = self.generation
        return Start(
            self.request_id,
            attempt.epoch,
            leg,
            generation.prompt,
            [ChoiceStart(choice.index, choice.tokens) for choice in self._choices if not choice.is_done],
            self.params,
            generation.seed,
            generation.priority,
            generation.seconds_left(now),
            generation.salt,
            attempt.ticket,
            generation.share,
        )

    # -- tokens -------------------------------------------------------------------------------------------

    def take(self, token: Token, worker: str) -> Next:
        """Take one token of a worker, in whatever order."""
        attempt = self.attempt
        if attempt is None:
            return STALE
        verdict = attempt.take(token, worker)
        finish_reason: str | None = token.finish_reason
        if verdict is not _ACCEPTED:
            if verdict is not _LAST:
                return refusal(verdict, token, worker, attempt)
            finish_reason = finish_reason or "length"  # whatever its worker goes on to say
        usage = self.usage
        if not usage.num_completion:
            usage.take_cached(token.num_cached, token.num_restored)
        usage.num_completion += 1
        index = token.choice
        shown, stop = self._texts[index].push(token.token_id, finish_reason)
        if stop is not None:
            finish_reason = "stop"
        self._sink.push(index, shown, token, finish_reason, token.stop_reason if stop is None else stop)
        if finish_reason is None and not attempt.early:
            return GO
        if self.is_over:  # a sink whose client is gone ends the request from within
            return NOTHING_NEW
        if finish_reason is not None:
            return self._end_choice(
                attempt, index, finish_reason, runs_on=stop is not None or token.finish_reason is None
            )
        return self._take_early(attempt) if index == 0 else GO

    def _take_early(self, attempt: Attempt) -> Next:
        """Take the tokens that waited for the last one; what is left then has a gap before it."""
        early, attempt.early = attempt.early, {}
        while early:
            token = early.pop(len(self._choices[0].tokens), None)
            if token is None:
                return Replay("gap", attempt.decode)
            step = self.take(token, attempt.decode)
            if step is not GO:
                return step
        return NOTHING_NEW

    def _end_choice(self, attempt: Attempt, index: int, finish_reason: str, *, runs_on: bool) -> Next:
        """Close a choice; `runs_on` if the worker does not know that it has ended."""
        self._choices[index].is_done = True
        self._num_open -= 1
        if index == 0:
            attempt.early.clear()
        if self._num_open:
            return ChoiceOver(index, finish_reason, runs_on)
        # what only the prefill worker saw end still runs on the decode worker
        return Over("finished", finish_reason, runs_on or not attempt.decode_gave_token)

    # -- failures -----------------------------------------------------------------------------------------

    def kv_arrived(self, worker: str, epoch: int) -> None:
        """A decode worker has fetched the prompt's KV."""
        attempt = self.attempt
        if attempt is not None and attempt.has_leg(worker, epoch):
            attempt.kv_arrived = True

    def leg_failed(self, worker: str, epoch: int, error: LegError) -> Next:
        attempt = self.attempt
        if attempt is None or not attempt.has_leg(worker, epoch):
            return STALE
        if not error.retryable:
            return Over("failed", "error", error=_error_of(error, self.request_id))
        if worker == attempt.prefill and attempt.lose_prefill():  # its KV has arrived already
            return NOTHING_NEW
        return Replay(error.kind, worker, is_busy=error.kind in _BUSY_KINDS)

    def leg_lost(self, worker: str, reason: str | None = None) -> Next:
        """Go on without a worker's leg; `reason` is of a worker that lives."""
        attempt = self.attempt
        assert attempt is not None
        if worker != attempt.prefill:
            return Replay(reason or "decode_lost", worker)
        return NOTHING_NEW if attempt.lose_prefill() else Replay(reason or "prefill_lost", worker)

    def end(self, over: Over) -> None:
        """Tell the client, unless it has left; let go of what leads to it, so that nothing waits for a collection of cycles."""
        self.is_over = True
        sink, self._sink, self._texts = self._sink, _NOBODY, ()
        if over.error is not None:
            sink.fail(over.error)
        elif over.state == "finished":
            sink.end(self.usage)


class ReplayedFlow(Flow[_Shown]):
    """A generation that is replayed once, after the tokens that its pin says: a class of its own, so that others pay nothing."""

    __slots__ = ("_replay_at",)

    def __init__(
        self, generation: Generation, texts: Sequence[ChoiceText[_Shown]], sink: Sink[_Shown], replay_at: int
    ) -> None:
        super().__init__(generation, texts, sink)
        self._replay_at = replay_at

    def take(self, token: Token, worker: str) -> Next:
        """Take one token; the one that the pin waits for is the last of its worker's."""
        step = super().take(token, worker)
        is_due = 0 < self._replay_at <= self.usage.num_completion and not self.is_over
        if is_due and step in (GO, NOTHING_NEW):
            self._replay_at = 0
            return Replay("asked", None if self.attempt is None else self.attempt.decode)
        return step


def flow_of(generation: Generation, texts: Sequence[ChoiceText[_Shown]], sink: Sink[_Shown]) -> Flow[_Shown]:
    """Make the flow of a generation, pinned or not."""
    replay_at = 0 if generation.pin is None else generation.pin.replay
    return ReplayedFlow(generation, texts, sink, replay_at) if replay_at else Flow(generation, texts, sink)


def refusal(verdict: Verdict, token: Token, worker: str, attempt: Attempt) -> Next:
    """Return what follows from a token that is not the next one."""
    if verdict is Verdict.STALE:
        return STALE
    if verdict is Verdict.EARLY or verdict is Verdict.REPEAT:
        return NOTHING_NEW
    if verdict is Verdict.GAP:
        return Replay("gap", attempt.decode)
    if verdict is Verdict.RECOMPUTED:
        # the client keeps the token that it has: the decode worker goes on from there, with the KV that it computed
        return Replay("recomputed", None) if worker == attempt.decode else NOTHING_NEW
    return Replay("integrity", worker, mismatch_at=token.position if verdict is Verdict.MISMATCH else None)


def _error_of(error: LegError, request_id: str) -> BatonError:
    """Return a worker's error as the client may see it."""
    if error.kind in _USERS_KINDS:
        code = "context_length_exceeded" if error.kind == "context_too_long" else None
        return InvalidRequest(error.message, field=error.field, code=code)
    if error.kind == "deadline":
        return DeadlinePassed()
    if error.kind in _BUSY_KINDS:
        return Unavailable(f"No worker can take the request now: {error.kind}. Try again later.")
    _log.error("leg_failed", request_id=request_id, kind=error.kind, reason=error.message)
    return BatonError("The request failed inside a worker. Its reason is in the log under the request's id.")
