"""Attempt: one epoch of a request, and what each of its workers has given. A replay makes a new one.

Pure: it knows no clock, no metrics, no log and no client; it takes tokens and answers with verdicts.
"""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass, field

from baton.messages import Ticket, Token

MAX_EARLY = 4096
"""Tokens kept while an earlier one is still on its way from another worker."""


class Verdict(enum.Enum):
    """What a token is to an attempt."""

    ACCEPTED = "accepted"
    """The next one of its choice."""
    LAST = "last"
    """The next one of its choice, and no more was asked for."""
    EARLY = "early"
    """Kept in `early`, until the prefill worker's first token is here."""
    REPEAT = "repeat"
    """Known already, or of a choice that has ended."""
    GAP = "gap"
    """One before it is missing, and nobody will give it."""
    MISMATCH = "mismatch"
    """Another token stands there already, computed on the same KV: it was wrong on one of two workers."""
    RECOMPUTED = "recomputed"
    """Another token stands there already, of a prompt that both workers computed: rounding may part them, and neither is wrong."""
    UNKNOWN = "unknown"
    """Of a choice that nobody asked for."""
    STALE = "stale"
    """Of another epoch, or of a worker that has no leg in this one."""


class State(enum.Enum):
    """What is awaited."""

    PREFILLING = "prefilling"
    """The prefill worker's first token; the decode worker has given nothing."""
    OVERTAKEN = "overtaken"
    """The prefill worker's first token, while the decode worker's are here already."""
    HANDED = "handed"
    """The decode worker's first token: the prefill worker has given its own, or there is none."""
    DECODING = "decoding"
    """The decode worker's next token."""
    CLOSED = "closed"
    """Nothing: it ended, or another attempt follows."""


_PREFILLING, _OVERTAKEN, _HANDED, _DECODING, _CLOSED = State
_ACCEPTED, _LAST, _EARLY, _REPEAT, _GAP, _MISMATCH, _RECOMPUTED, _UNKNOWN, _STALE = Verdict
_DECODE_GAVE = {_PREFILLING: _OVERTAKEN, _HANDED: _DECODING}
_PREFILL_GAVE = {_PREFILLING: _HANDED, _OVERTAKEN: _DECODING}


@dataclass(slots=True, eq=False)
class Choice:
    """The tokens of one choice that the client has. Lives as long as the request."""

    index: int
    tokens: list[int] = field(default_factory=list)
    is_done: bool = False


#        with a prefill worker P                       without
#                 │                                       │
#                 ▼                                       ▼
#           PREFILLING ────── P gives a token ───────▶ HANDED
#                 │                                       │
#          D gives a token                         D gives a token
#                 ▼                                       ▼
#            OVERTAKEN ── P gives a token, or is ────▶ DECODING ◀──┐ D gives a token
#                         gone and nothing is missing     └────────┘
#
#    every state ── the last choice ended; a worker failed, is lost, or broke a rule; the client left ──▶ CLOSED
@dataclass(slots=True, eq=False)
class Attempt:
    """One epoch: its workers by id, its ticket, its state.

    `choices` are the request's own: an accepted token is appended to its choice.
    """

    epoch: int
    num_prompt: int
    """Prompt tokens: where an answer's positions begin."""
    choices: list[Choice]
    decode: str
    prefill: str | None = None
    ticket: Ticket | None = None
    last_at: int = sys.maxsize
    """The place in an answer of the last token that was asked for."""
    kv_arrived: bool = False
    """Whether the decode worker has the prompt's KV from the prefill worker."""
    state: State = field(init=False)
    early: dict[int, Token] = field(default_factory=dict)
    """Tokens of choice 0 that came before the first one, by their place in the answer."""

    def __post_init__(self) -> None:
        self.state = _HANDED if self.prefill is None else _PREFILLING

    @property
    def decode_gave_token(self) -> bool:
        """Whether the decode worker has the prompt's KV and goes on by itself."""
        return self.state is _DECODING or self.state is _OVERTAKEN

    def has_leg(self, worker: str, epoch: int) -> bool:
        """Whether a message of this worker and epoch belongs here."""
        return epoch == self.epoch and self.state is not _CLOSED and worker in (self.decode, self.prefill)

    def waits_for(self, worker: str) -> bool:
        """Whether a token is due from this worker."""
        if self.state is _CLOSED:
            return False
        return worker == self.decode or (worker == self.prefill and self._prefill_owes)

    @property
    def open_choices(self) -> list[int]:
        """Choices that have not ended."""
        return [choice.index for choice in self.choices if not choice.is_done]

    def due(self, worker: str) -> list[int]:
        """Choices whose next token must come from this worker, whatever another one says."""
        if not self.waits_for(worker):
            return []
        if worker == self.prefill:
            return [0]
        # the first token of choice 0, which comes from the prefill worker, may be its last
        return [choice for choice in self.open_choices if choice or not self._prefill_owes]

    def take(self, token: Token, worker: str) -> Verdict:
        """Judge one token of a worker; an accepted one is now its choice's last."""
        state = self.state
        if token.epoch != self.epoch or state is _CLOSED:
            return _STALE
        is_decode = worker == self.decode
        if not is_decode and worker != self.prefill:
            return _STALE
        index = token.choice
        if not 0 <= index < len(self.choices):
            return _UNKNOWN
        if state is not _DECODING:
            self.state = (_DECODE_GAVE if is_decode else _PREFILL_GAVE).get(state, state)
        choice = self.choices[index]
        if choice.is_done:  # ended here, by a stop string; the worker will hear of it
            return _REPEAT
        tokens = choice.tokens
        at = token.position - self.num_prompt
        if at == len(tokens):
            tokens.append(token.token_id)
            return _ACCEPTED if at < self.last_at else _LAST
        if at > len(tokens):
            return self._keep_early(token, at)
        if at >= 0 and tokens[at] == token.token_id:
            return _REPEAT
        return _RECOMPUTED if self.ticket is not None and not self.kv_arrived else _MISMATCH

    def lose_prefill(self) -> bool:
        """Go on without the prefill worker; False if something is missing that only it could give."""
        if not self.decode_gave_token or self.early:
            return False
        self.prefill = None
        self.state = _DECODING
        return True

    def close(self) -> None:
        """Take nothing more."""
        self.state = _CLOSED
        self.early.clear()

    @property
    def _prefill_owes(self) -> bool:
        return self.state is _PREFILLING or self.state is _OVERTAKEN

    def _keep_early(self, token: Token, at: int) -> Verdict:
        """Keep a token whose predecessor is on its way from the prefill worker; else there is a gap."""
        if self._prefill_owes and token.choice == 0 and len(self.early) < MAX_EARLY:
            kept = self.early.setdefault(at, token)
            return _EARLY if kept.token_id == token.token_id else _MISMATCH
        return _GAP
