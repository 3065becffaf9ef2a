"""Journal: where the last requests went and why, and when they did what. For /debug/route and /debug/requests.

Times and counts only, never text or tokens. The dispatcher writes a record at a request's stations, and workers' reports
add spans: a handful of times a request, nothing a token. Durations are the workers' own; they are laid so that they end
when their report came here. Requests that were refused have a list of their own, so that many of them drive out no other.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from heapq import merge
from itertools import islice
from typing import Any, Literal

from baton.errors import BatonError
from baton.messages import Computed, Transfer
from baton.router.flow import EndState
from baton.router.policy import Decision
from baton.router.sink import Usage

CAPACITY = 200
"""Requests that are shown."""
NUM_RECORDS = 1024
"""Requests whose route is remembered."""
MAX_ATTEMPTS = 16
"""A request may be handed over by draining workers any number of times, and a client may send the same id for ever."""

SpanKind = Literal["queue", "prefill", "transfer", "decode"]


@dataclass(slots=True)
class Span:
    """What a worker did for a request. Times are the loop's clock; `end` 0: it still does."""

    kind: SpanKind
    worker: str
    start: float
    end: float = 0.0
    num_tokens: int = 0
    nbytes: int = 0
    exposed_s: float = 0.0
    """Of a transfer, the part after its prompt was computed."""


@dataclass(slots=True)
class AttemptRecord:
    """One epoch: where the request was sent, and what came of it."""

    epoch: int
    decision: Decision
    sent_at: float
    """0: a worker did not take its message."""
    at: float = field(default_factory=time.time)
    """Unix time of the decision."""
    spans: list[Span] = field(default_factory=list)
    transfer: Span | None = None
    ended_at: float = 0.0
    replay_reason: str | None = None
    """Why another attempt had to follow."""

    def end(self, now: float) -> None:
        """Close what is open."""
        self.ended_at = now
        for span in self.spans:
            span.end = span.end or now


@dataclass(slots=True)
class Inputs:
    """Inputs of one request that go to workers each by itself, counted."""

    num: int
    num_done: int = 0
    by_worker: dict[str, int] = field(default_factory=dict)
    """How many were sent to each; one that was replayed counts again."""


@dataclass(slots=True, eq=False)
class RequestRecord:
    """One request, as far as it has come."""

    public_id: str
    usage: Usage
    arrived_at: float
    tenant: bytes = b""
    """Whose it is: shown to nobody else."""
    unix_time: float = field(default_factory=time.time)
    state: Literal["waiting", "running", "refused"] | EndState = "waiting"
    status: int = 200
    """Of the error that ended it, else 200."""
    cause: str | None = None
    """Why it was refused or failed: a word of ours, never the client's."""
    first_token_at: float = 0.0
    ended_at: float = 0.0
    num_cached: int = 0
    attempts: list[AttemptRecord] = field(default_factory=list)
    """The last ones; of a request with `inputs`, those of any of them."""
    inputs: Inputs | None = None
    input_of: RequestRecord | None = None
    """The request whose input it is: that is shown, and counts what becomes of this."""

    def placed(self, epoch: int, decision: Decision, sent_at: float) -> None:
        """It has its workers; `sent_at` is 0 if one of them did not take its message."""
        attempt = AttemptRecord(epoch, decision, sent_at)
        self._add(attempt)
        whole = self.input_of
        if whole is not None and whole.inputs is not None:
            whole._add(attempt)
            by_worker, worker = whole.inputs.by_worker, decision.chosen.decode
            by_worker[worker] = by_worker.get(worker, 0) + bool(sent_at)

    def computed(self, worker: str, report: Computed, now: float) -> None:
        """A worker has its first token of this request."""
        attempt = self._attempt(report.epoch)
        if attempt is None:
            return
        began = now - report.seconds
        decodes = worker == attempt.decision.chosen.decode
        transfer = attempt.transfer
        if decodes and transfer is not None:
            # the worker's own clock knows better when the last block came than we, who heard of it
            fetched = began - report.waited_seconds
            transfer.start, transfer.end = fetched - (transfer.end - transfer.start), fetched
            attempt.spans.append(Span("queue", worker, fetched, began))
            # nothing of the prompt is left to compute
            attempt.spans.append(Span("decode", worker, began))
            return
        since = attempt.sent_at if attempt.epoch else self.arrived_at
        attempt.spans.append(Span("queue", worker, min(since, began), began))
        attempt.spans.append(Span("prefill", worker, began, now, report.num_tokens))
        if decodes:
            attempt.spans.append(Span("decode", worker, now))

    def transferred(self, worker: str, report: Transfer, now: float) -> None:
        """A prompt's KV has arrived."""
        attempt = self._attempt(report.epoch)
        if attempt is not None:
            start = now - max(report.seconds, report.exposed_seconds)
            exposed_s = report.exposed_seconds
            attempt.transfer = Span("transfer", worker, start, now, report.num_tokens, report.nbytes, exposed_s)
            attempt.spans.append(attempt.transfer)

    def first_token(self, now: float, num_cached: int) -> None:
        """The client has a token."""
        self.state, self.first_token_at, self.num_cached = "running", now, num_cached

    def replayed(self, reason: str, now: float) -> None:
        if self.attempts:
            self.attempts[-1].replay_reason = reason
            self.attempts[-1].end(now)

    def end(self, state: EndState, error: BatonError | None, now: float) -> None:
        self.state, self.ended_at = state, now
        if error is not None:
            self.status, self.cause = error.status, error.cause
        if self.attempts and self.inputs is None:
            self.attempts[-1].end(now)
        whole = self.input_of
        if whole is not None and whole.inputs is not None:
            whole.num_cached += self.usage.num_cached
            whole.inputs.num_done += state == "finished"
            if whole.state == "waiting":
                whole.state = "running"

    def describe(self) -> dict[str, Any]:
        """Return it as JSON; times in ms from its arrival."""

        def ms(at: float) -> float | None:
            return round(1000 * (at - self.arrived_at), 3) if at else None

        return {
            "id": self.public_id,
            "at": self.unix_time,
            "state": self.state,
            "status": self.status,
            "cause": self.cause,
            "prompt_tokens": self.usage.num_prompt,
            "cached_tokens": self.num_cached,
            "completion_tokens": self.usage.num_completion,
            "inputs": self.inputs
            and {"count": self.inputs.num, "done": self.inputs.num_done, "by_worker": self.inputs.by_worker},
            "first_token_ms": ms(self.first_token_at),
            "total_ms": ms(self.ended_at),
            "attempts": [
                {
                    "epoch": attempt.epoch,
                    "prefill": attempt.decision.chosen.prefill,
                    "decode": attempt.decision.chosen.decode,
                    "sent_ms": ms(attempt.sent_at),
                    "ended_ms": ms(attempt.ended_at),
                    "replay_reason": attempt.replay_reason,
                    "spans": [
                        {
                            "kind": span.kind,
                            "worker": span.worker,
                            "start_ms": ms(span.start),
                            "end_ms": ms(span.end),
                            "tokens": span.num_tokens,
                            "bytes": span.nbytes,
                            "exposed_ms": round(1000 * span.exposed_s, 3),
                        }
                        for span in attempt.spans
                    ],
                }
                for attempt in self.attempts
                if attempt.sent_at
            ],
        }

    def _add(self, attempt: AttemptRecord) -> None:
        if len(self.attempts) == MAX_ATTEMPTS:
            del self.attempts[0]
        self.attempts.append(attempt)

    def _attempt(self, epoch: int) -> AttemptRecord | None:
        last = self.attempts[-1] if self.attempts else None
        return last if last is not None and last.epoch == epoch else None


class Journal:
    """The last requests, newest first."""

    def __init__(self) -> None:
        self._records: deque[RequestRecord] = deque(maxlen=NUM_RECORDS)
        self._refused: deque[RequestRecord] = deque(maxlen=CAPACITY)
        self.num_refused = 0

    def add(self, record: RequestRecord) -> None:
        """Take in a request that arrived; the oldest may be forgotten."""
        self._records.appendleft(record)

    def refuse(self, public_id: str, tenant: bytes, error: BatonError) -> None:
        """Take in a request that was answered with an error before any worker heard of it."""
        now = time.monotonic()
        self.num_refused += 1
        self._refused.appendleft(
            RequestRecord(
                *(public_id, Usage(0), now, tenant),
                state="refused",
                status=error.status,
                cause=error.cause,
                ended_at=now,
            )
        )

    def newest(self, count: int, tenant: bytes = b"") -> list[RequestRecord]:
        """Return a tenant's last requests; refused ones are at most half of them, unless there are few others."""
        taken, refused = (
            list(islice((each for each in records if each.tenant == tenant), count))
            for records in (self._records, self._refused)
        )
        parts = (taken, refused[: max((count + 1) // 2, count - len(taken))])
        return list(islice(merge(*parts, key=lambda record: record.arrived_at, reverse=True), count))

    def routes(self, public_id: str, tenant: bytes = b"") -> list[AttemptRecord]:
        """Return the attempts of a tenant's requests with this id, oldest first."""
        mine = (each for each in self._records if each.public_id == public_id and each.tenant == tenant)
        attempts = [attempt for record in mine for attempt in record.attempts]
        return sorted(attempts, key=lambda attempt: attempt.at)[-MAX_ATTEMPTS:]
