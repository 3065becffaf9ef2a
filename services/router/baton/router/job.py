"""Job: what the dispatcher drives through its legs, and what it is told to do next.

A generation's Flow is the one job today. A request that is no generation (scoring, pooling) is a class beside Flow, in a
file of its own, with these members; the dispatcher then drives it as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from baton.errors import BatonError
from baton.messages import LegError, Start, Token, WorkerInfo
from baton.router.attempt import Attempt
from baton.router.generation import Generation
from baton.router.sink import Usage

EndState = Literal["finished", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Go:
    """Nothing is to be done."""

    num_shown: int
    """Tokens that went to the client."""


@dataclass(frozen=True, slots=True)
class Stale:
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
class Over:
    """The request has ended."""

    state: EndState
    finish_reason: str
    """As it is counted: how the last choice ended, or "error"."""
    runs_on: bool = True
    """The decode worker does not know yet."""
    error: BatonError | None = None


Next = Go | Stale | ChoiceOver | Replay | Over
GO = Go(1)
"""What nearly every token leads to."""
NOTHING_NEW = Go(0)
STALE = Stale()


class Job(Protocol):
    """One request through its legs. Holds what outlives an attempt; the dispatcher holds timers and workers."""

    request_id: str
    generation: Generation
    attempt: Attempt | None
    """The last one; None before the first."""
    usage: Usage
    """Grows with each token."""

    @property
    def num_emitted(self) -> int:
        """Tokens that a new attempt would compute beside the prompt."""
        ...

    def begin(self, decode: WorkerInfo, prefill: WorkerInfo | None) -> list[tuple[str, Start]]:
        """Make the next attempt; return what each worker is to run, by id."""
        ...

    def take(self, token: Token, worker: str) -> Next:
        """Take one token of a worker, in whatever order."""
        ...

    def leg_failed(self, worker: str, epoch: int, error: LegError) -> Next:
        """Take a leg's failure."""
        ...

    def leg_lost(self, worker: str) -> Next:
        """Take the loss of a worker that ran a leg."""
        ...

    def end(self, over: Over) -> None:
        """Tell the client. Called once, when the dispatcher has forgotten the request."""
        ...
