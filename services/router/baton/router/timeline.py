"""Timeline: when the last requests did what, and where, for /debug/requests. Times and counts only, never text or tokens.

A flow writes its record at its stations, and workers' reports add spans: a handful of times a request, nothing a token.
Durations are the workers' own; they are laid so that they end when their report came here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from baton.messages import Computed, Transfer
from baton.router.policy import Option

CAPACITY = 200
MAX_ATTEMPTS = 16
"""A request may be handed over by draining workers any number of times."""

SpanKind = Literal["queue", "prefill", "transfer", "decode"]
RequestState = Literal["waiting", "running", "finished", "failed", "cancelled"]


@dataclass(slots=True)
class Span:
    """What a worker did for a request. Times are the loop's clock; `end` 0: it still does."""

    kind: SpanKind
    worker: str
    start: float
    end: float = 0.0
    num_tokens: int = 0
    nbytes: int = 0

    def move_to_end_at(self, end: float) -> None:
        """Keep its length."""
        self.start, self.end = self.start + end - self.end, end


@dataclass(slots=True)
class Attempt:
    """One epoch: where the request was sent, and what came of it."""

    epoch: int
    decode: str
    prefill: str | None
    sent_at: float
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


@dataclass(slots=True, eq=False)
class RequestRecord:
    """One request, as far as it has come. Owned by its flow."""

    request_id: str
    public_id: str
    num_prompt_tokens: int
    arrived_at: float
    unix_time: float = field(default_factory=time.time)
    state: RequestState = "waiting"
    status: int = 200
    """Of the error that ended it, else 200."""
    first_token_at: float = 0.0
    ended_at: float = 0.0
    num_cached: int = 0
    num_completion_tokens: int = 0
    attempts: list[Attempt] = field(default_factory=list)

    def sent(self, epoch: int, option: Option, now: float) -> None:
        """Its legs are on their way."""
        if len(self.attempts) == MAX_ATTEMPTS:
            del self.attempts[0]
        self.attempts.append(Attempt(epoch, option.decode, option.prefill, now))

    def computed(self, worker: str, report: Computed, now: float) -> None:
        """A worker has its first token of this request."""
        attempt = self._attempt(report.epoch)
        if attempt is None:
            return
        began = now - report.seconds
        if worker == attempt.decode and attempt.transfer is not None:
            # the worker's own clock knows better when the last block came than we, who heard of it
            fetched = began - report.waited_seconds
            attempt.transfer.move_to_end_at(fetched)
            attempt.spans.append(Span("queue", worker, fetched, began))
            # what is left of the prompt, less than a block, is computed in its first step
            attempt.spans.append(Span("decode", worker, began))
            return
        since = attempt.sent_at if attempt.epoch else self.arrived_at
        attempt.spans.append(Span("queue", worker, min(since, began), began))
        attempt.spans.append(Span("prefill", worker, began, now, report.num_tokens))
        if worker == attempt.decode:
            attempt.spans.append(Span("decode", worker, now))

    def transferred(self, worker: str, report: Transfer, now: float) -> None:
        """A prompt's KV has arrived."""
        attempt = self._attempt(report.epoch)
        if attempt is not None:
            start = now - max(report.seconds, report.exposed_seconds)
            attempt.transfer = Span("transfer", worker, start, now, report.num_tokens, report.nbytes)
            attempt.spans.append(attempt.transfer)

    def first_token(self, now: float, num_cached: int) -> None:
        """The client has a token."""
        self.state, self.first_token_at, self.num_cached = "running", now, num_cached

    def replayed(self, reason: str, now: float) -> None:
        """An attempt failed; another follows."""
        if self.attempts:
            self.attempts[-1].replay_reason = reason
            self.attempts[-1].end(now)

    def end(self, state: RequestState, num_completion_tokens: int, now: float) -> None:
        """It is over."""
        self.state, self.num_completion_tokens, self.ended_at = state, num_completion_tokens, now
        if self.attempts:
            self.attempts[-1].end(now)

    def describe(self, num_completion_tokens: int) -> dict[str, Any]:
        """Give it as JSON; times in ms from its arrival."""

        def ms(at: float) -> float | None:
            return round(1000 * (at - self.arrived_at), 3) if at else None

        return {
            "id": self.public_id,
            "at": self.unix_time,
            "state": self.state,
            "status": self.status,
            "prompt_tokens": self.num_prompt_tokens,
            "cached_tokens": self.num_cached,
            "completion_tokens": num_completion_tokens,
            "first_token_ms": ms(self.first_token_at),
            "total_ms": ms(self.ended_at),
            "attempts": [
                {
                    "epoch": attempt.epoch,
                    "prefill": attempt.prefill,
                    "decode": attempt.decode,
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
                        }
                        for span in attempt.spans
                    ],
                }
                for attempt in self.attempts
            ],
        }

    def _attempt(self, epoch: int) -> Attempt | None:
        last = self.attempts[-1] if self.attempts else None
        return last if last is not None and last.epoch == epoch else None


class Timeline:
    """The last requests, newest first."""

    def __init__(self) -> None:
        self._records: deque[RequestRecord] = deque(maxlen=CAPACITY)

    def add(self, record: RequestRecord) -> None:
        """Take in a request that arrived; it may forget the oldest."""
        self._records.appendleft(record)

    def newest(self, count: int) -> Iterator[RequestRecord]:
        """Give so many, if there are."""
        return islice(self._records, count)
