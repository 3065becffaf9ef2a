"""The legs of requests that this worker has, and what goes back to the routers that asked.

A run is one leg of one request in one epoch. It is open from its Start to its last token, error or cancellation; it
stays in the table until the leg has every block of it back, so an empty table means that nothing is held.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from baton.engine.engine import TokenOutput
from baton.engine.pooler import Pooled as Made
from baton.errors import BatonError, ContextTooLong, InvalidRequest, OutOfBlocks, QueueFull, UnsupportedFeature
from baton.messages import Computed, Ended, LegError, Load, Outputs, Pool, Pooled, Start, Token, Transfer, write_rows
from baton.messages import Leg as LegName
from baton.worker.mailbox import Peer

SCORES_NBYTES = 8 * 2**20
"""Of log-probabilities in one message, unless one token has more."""
_SCORE_NBYTES = 17
"""Of an id, a score and a rank."""
REMEMBERED_S = 120.0
"""How long a closed epoch is known. A Start is on its way for milliseconds; this covers a router that stalls."""
REMEMBERED_MAX = 200_000


@dataclass(slots=True, eq=False)
class Run:
    """One leg of one request in one epoch.

    Start               last token, error, Cancel, deadline             every block is back
    ─────> in the table ──────────────────────────────────> `is_over` ─────────────────────> closed, out of the table

    Each leg draws what lies between for its own (`State` in `leg.py`).
    """

    asked: Start | Pool
    peer: Peer
    engine_id: str
    """What the engine knows it by."""
    began_at: float = field(default_factory=time.monotonic)
    queued_at: float = 0.0
    """When it was the engine's turn: at once, or when its KV had come."""
    computing_at: float = 0.0
    """When the first step with a part of it began; 0: not yet."""
    num_fetched: int = 0
    """Prompt tokens whose KV came from elsewhere."""
    is_over: bool = False
    """Nothing more is sent to the router; the leg may still hold blocks for a moment."""
    open_choices: set[int] = field(default_factory=set)
    begun_choices: set[int] = field(default_factory=set)
    """Choices that gave a token here."""

    @classmethod
    def of(cls, start: Start | Pool, peer: Peer) -> Run:
        """Make the run that a Start asks for."""
        choices = {choice.index for choice in start.choices}
        if start.leg == "prefill":
            choices = {start.choices[0].index}
        engine_id = f"{start.request_id}.{start.epoch}.{start.leg}"
        return cls(start, peer, engine_id, open_choices=choices)

    def __post_init__(self) -> None:
        self.queued_at = self.began_at

    @property
    def start(self) -> Start:
        """The Start that it is of, where it generates."""
        assert isinstance(self.asked, Start)
        return self.asked

    @property
    def emitted(self) -> dict[int, list[int]]:
        """Tokens that each choice has already, as the engine takes them."""
        return {choice.index: choice.emitted for choice in self.asked.choices}


class Leg(Protocol):
    """One thing that a worker does for requests. Owned by the loop's thread."""

    name: LegName

    def begin(self, run: Run) -> None:
        """Take in a run. What it raises as `BatonError` is the answer, and nothing is held."""

    def take(self, run: Run, output: TokenOutput) -> None:
        """Take in a token of an open run."""

    def stop(self, run: Run) -> None:
        """End a run wherever it stands; `Runs.close` it once nothing of it is held."""

    def stop_choice(self, run: Run, choice: int) -> None:
        """End one of several choices."""

    def advance(self) -> bool:
        """Do what events and the last step made possible, without waiting; whether the engine may have more to do by it."""

    def stranded_blocks(self) -> int:
        """Count the blocks that runs which are over still hold."""


class ClosedEpochs:
    """Which epochs of which requests are closed, so that a Start after its Cancel is dropped. Bounded."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._closed: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def close(self, request_id: str, epoch: int) -> None:
        """Close an epoch and all before it."""
        known, _ = self._closed.get(request_id, (-1, 0.0))
        self._closed[request_id] = (max(known, epoch), self._clock())
        self._closed.move_to_end(request_id)
        while self._closed:
            oldest, (_epoch, closed_at) = next(iter(self._closed.items()))
            if len(self._closed) <= REMEMBERED_MAX and self._clock() - closed_at < REMEMBERED_S:
                return
            del self._closed[oldest]

    def is_closed(self, request_id: str, epoch: int) -> bool:
        """Whether this epoch of the request was closed lately."""
        return epoch <= self._closed.get(request_id, (-1, 0.0))[0]


class Runs:
    """The table of runs, by what the engine calls them and by request."""

    def __init__(self) -> None:
        self._by_engine_id: dict[str, Run] = {}
        self._by_request: dict[str, list[Run]] = {}
        self.on_close: Callable[[Run], None] = lambda run: None

    def __len__(self) -> int:
        return len(self._by_engine_id)

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._by_engine_id.values()))

    def get(self, engine_id: str) -> Run | None:
        """Find the run that the engine knows by this id."""
        return self._by_engine_id.get(engine_id)

    def of_request(self, request_id: str) -> list[Run]:
        """Runs of a request: of both legs, of any epoch."""
        return list(self._by_request.get(request_id, ()))

    def open(self, run: Run) -> None:
        """Add a run."""
        self._by_engine_id[run.engine_id] = run
        self._by_request.setdefault(run.asked.request_id, []).append(run)

    def close(self, run: Run) -> None:
        """Forget a run of which nothing is held; again is harmless."""
        if self._by_engine_id.pop(run.engine_id, None) is None:
            return
        run.is_over = True
        of_request = self._by_request[run.asked.request_id]
        of_request.remove(run)
        if not of_request:
            del self._by_request[run.asked.request_id]
        self.on_close(run)


@dataclass(slots=True)
class _Mail:
    tokens: list[Token] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    computed: list[Computed] = field(default_factory=list)
    pooled: list[Pooled] = field(default_factory=list)
    nbytes: int = 0
    """About, of log-probabilities."""


class Outbox:
    """What a turn of the loop says, one message a router."""

    def __init__(self) -> None:
        self._mail: defaultdict[Peer, _Mail] = defaultdict(_Mail)
        self.num_tokens = 0
        """Tokens given out since the start."""
        self.prompt_tokens: Counter[str] = Counter()
        """Tokens of prompts since the start, by where their KV came from."""
        self.transfers: list[Transfer] = []
        """Since they were last taken for the metrics."""
        self.phases: list[tuple[str, float]] = []
        """Names and seconds, since they were last taken for the metrics."""

    def token(self, run: Run, output: TokenOutput) -> None:
        """Tell the router a token of an open run, and note the choice's end."""
        choice = output.choice
        is_first = choice not in run.begun_choices
        if is_first:
            if not run.begun_choices:
                self._note_computed(run, output)
            run.begun_choices.add(choice)
        reason = output.finish_reason
        token = Token(
            run.asked.request_id,
            run.asked.epoch,
            choice,
            output.position,
            output.token_id,
            finish_reason=None if reason is None else reason.value,
            stop_reason=output.stop_reason,
            num_cached=output.num_cached_tokens if is_first else 0,
            num_fetched=run.num_fetched if is_first else 0,
            logprobs=output.logprobs,
            prompt_logprobs=None if output.prompt_logprobs is None else write_rows(output.prompt_logprobs),
            num_restored=output.num_restored_tokens if is_first else 0,
        )
        mail = self._mail[run.peer]
        mail.tokens.append(token)
        if token.logprobs is not None or token.prompt_logprobs is not None:
            mail.nbytes += _scores_nbytes(token)
        self.num_tokens += 1
        if reason is not None:
            run.open_choices.discard(choice)

    def pooled(self, run: Run, output: TokenOutput, made: Made) -> None:
        """Tell the router what came of a prompt, which is the run's end."""
        self._note_computed(run, output)
        num_cached, num_restored = output.num_cached_tokens, output.num_restored_tokens
        pooled = Pooled(run.asked.request_id, run.asked.epoch, made.data, made.shape, num_cached, num_restored)
        self._mail[run.peer].pooled.append(pooled)

    def _note_computed(self, run: Run, output: TokenOutput) -> None:
        """Count a prompt that is computed, and tell how it went."""
        self._count_prompt(run, output)
        self._mail[run.peer].computed.append(computed := _computed(run, output))
        self.phases += [("queue", computed.waited_seconds), ("compute", computed.seconds)]

    def ended(self, run: Run, error: LegError) -> None:
        """Tell the router that a run failed, or was not taken in."""
        self._mail[run.peer].ended.append(Ended(run.asked.request_id, run.asked.epoch, error))

    def transfer(self, run: Run, transfer: Transfer) -> None:
        """Tell the router how a transfer went."""
        self._mail[run.peer].transfers.append(transfer)
        self.transfers.append(transfer)

    def take(self, worker_id: str, incarnation: str, load: Load) -> list[tuple[Peer, Outputs]]:
        """Take one message for each router that there is anything for; more where all scores would make it too long."""
        mail, self._mail = self._mail, defaultdict(_Mail)
        taken: list[tuple[Peer, Outputs]] = []
        for peer, its in mail.items():
            *before, last = [its.tokens] if its.nbytes <= SCORES_NBYTES else parts_of(its.tokens)
            taken += [(peer, Outputs(worker_id, incarnation, tokens, load)) for tokens in before]
            others = (its.ended, its.transfers, its.computed)
            taken.append((peer, Outputs(worker_id, incarnation, last, load, *others, pooled=its.pooled)))
        return taken

    def _count_prompt(self, run: Run, output: TokenOutput) -> None:
        """Count a prompt once a run; what was emitted before a replay may be cached too, and is not the prompt."""
        num_tokens = len(run.asked.prompt)
        cached = min(output.num_cached_tokens, num_tokens)
        restored = min(output.num_restored_tokens, cached)
        fetched = min(run.num_fetched, num_tokens - cached)
        computed = num_tokens - cached - fetched
        self.prompt_tokens.update(
            local_compute=computed,
            local_cache_hit=cached - restored,
            host_memory=restored,
            external_kv_transfer=fetched,
        )


def _scores_nbytes(token: Token) -> int:
    own = 0 if token.logprobs is None else _SCORE_NBYTES * len(token.logprobs.token_ids)
    return own + sum(map(len, token.prompt_logprobs or ()))


def parts_of(tokens: list[Token]) -> list[list[Token]]:
    """Divide tokens, in their order, by what their scores take."""
    parts: list[list[Token]] = [[]]
    nbytes = 0
    for token in tokens:
        nbytes += _scores_nbytes(token)
        if parts[-1] and nbytes > SCORES_NBYTES:
            parts.append([])
            nbytes = _scores_nbytes(token)
        parts[-1].append(token)
    return parts


def _computed(run: Run, output: TokenOutput) -> Computed:
    start, now = run.asked, time.monotonic()
    began = run.computing_at or now
    num_known = len(start.prompt) + len(run.emitted[output.choice])
    return Computed(
        start.request_id,
        start.epoch,
        max(num_known - output.num_cached_tokens - run.num_fetched, 0),
        output.num_cached_tokens,
        max(began - run.queued_at, 0.0),
        now - began,
    )


def leg_error(error: BaseException) -> LegError:
    """Put an exception into words that routers understand; what the request is not to blame for is retryable."""
    match error:
        case ContextTooLong():
            return LegError("context_too_long", str(error), False, error.field)
        case UnsupportedFeature():
            return LegError("unsupported", str(error), False, error.field)
        case InvalidRequest():
            return LegError("invalid_request", str(error), False, error.field)
        case QueueFull():
            return LegError("queue_full", str(error), True)
        case OutOfBlocks():
            return LegError("out_of_blocks", str(error), True)
        case BatonError():
            return LegError("internal", str(error), error.retryable)
        case _:
            return LegError("internal", f"{type(error).__name__} in a worker", True)
