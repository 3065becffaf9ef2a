"""A discrete-event simulation of workers: Poisson or recorded requests, steps as long as `StepTimes` says, KV on a link.

Workers compute one step after another: each running sequence gets a token, and prompts' chunks lie beside them, first come,
first served. Apart, a prefill worker computes the prompt and gives the first token; its KV travels while later chunks are
computed, one prompt's after another's on a link, and the sequence joins a decode worker's batch between two steps. With
`auto` each prompt goes where its first token is predicted earlier. What it leaves out: caches, losses, the router's own
time, and that a mean step varies.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise

from baton.bench.completion_stream import Outcome
from baton.doctor.traffic import Request, Traffic
from baton.step_pace import BREAK_EVERY, StepPace
from baton.step_times import StepTimes

MAX_ROWS = 256
_LEAST_CHUNK = 32
_MARGIN = 1.1
"""Times the predicted time that nearly all steps with chunks keep to, as workers learn it."""
_LINK_S = 0.001
"""Of a transfer, beside its bytes: asking, checking, and joining."""


@dataclass(frozen=True, slots=True)
class Chunks:
    """How a worker sizes prompts' chunks beside its rows: so many tokens, or as its pace allows."""

    tokens: int = 8192
    pace: StepPace | None = None

    @classmethod
    def within(cls, target_s: float, times: StepTimes) -> Chunks:
        """Size them for gaps of at most so many seconds, as `--itl-target-ms` does."""
        return cls(pace=StepPace(times, target_s, margin=_MARGIN))

    def most(self, times: StepTimes, rows: int, context: int, start: int, num_steps: int) -> int:
        """Say how many prompt tokens a step takes."""
        if self.pace is None or not rows:
            return max(self.tokens - rows, 1)
        most = times.most_tokens(self.pace.most_s(rows, context), rows, context, start=start, most=self.tokens)
        if most >= _LEAST_CHUNK:
            return most
        if num_steps % BREAK_EVERY:
            return 0
        return times.most_tokens(self.pace.broken_s(rows, context), rows, context, start=start, most=self.tokens)

    def most_rows(self, context: int) -> int:
        """Say how many sequences of so many tokens may run at once."""
        return MAX_ROWS if self.pace is None else min(MAX_ROWS, self.pace.most_rows(context))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Workers, and what they are."""

    times: StepTimes
    num_decode: int
    num_prefill: int = 0
    """0: decode workers compute prompts themselves."""
    auto: bool = False
    """Whether decode workers compute those prompts that are sooner done there."""
    chunks: Chunks = field(default_factory=Chunks)
    """Of decode workers that compute prompts."""
    link_bytes_s: float = 0.0
    kv_token_nbytes: int = 0
    kv_tokens: int = 1 << 40
    """That one worker's memory holds."""
    hold_s: float = 0.0
    """How long after its request a prefill worker's token may wait for the second, so that a stream begins without a gap."""


def simulate(layout: Layout, traffic: Traffic) -> list[Outcome]:
    """Return what the client of each request sees, in the order of the requests."""
    return _Simulation(layout, traffic).run()


@dataclass(slots=True, eq=False)
class _Sequence:
    request: Request
    outcome: Outcome
    num_computed: int = 0
    begun_at: float = 0.0
    first_at: float = 0.0
    joined_at: int = 0
    """The number of the step that gives its second token."""

    @property
    def num_kv(self) -> int:
        """Tokens that it will hold."""
        return self.request.input_len + self.request.output_len


@dataclass(slots=True, eq=False)
class _Worker:
    """One engine: what waits for it, what runs, and the step on its way."""

    chunks: Chunks
    is_prefill: bool
    waiting: deque[_Sequence] = field(default_factory=deque)
    arrived: deque[_Sequence] = field(default_factory=deque)
    """With KV from elsewhere."""
    rows: int = 0
    """Sequences that run."""
    stepped_at: list[float] = field(default_factory=list)
    """When each step with rows ended: all of its rows got a token then."""
    leaving: dict[int, list[_Sequence]] = field(default_factory=dict)
    """By the number of the step that gives the last token."""
    context: int = 0
    held: int = 0
    """KV tokens that are promised."""
    num_steps: int = 0
    num_queued: int = 0
    """Prompt tokens to compute."""
    num_coming: int = 0
    """Sequences whose KV is on the way."""
    link_free_at: float = 0.0
    is_busy: bool = False
    ends: list[_Sequence] = field(default_factory=list)
    """Whose prompts the step ends."""


class _Simulation:
    def __init__(self, layout: Layout, traffic: Traffic) -> None:
        self._layout = layout
        self._times = layout.times
        whole = Chunks(max(layout.times.efficient_chunk(), 1))
        self._prefill = [_Worker(whole, True) for _ in range(layout.num_prefill)]
        self._decode = [_Worker(layout.chunks, False) for _ in range(layout.num_decode)]
        self._outcomes = [
            Outcome(input_len=request.input_len, output_len=request.output_len, num_tokens=request.output_len)
            for request in traffic.requests
        ]
        self._order = count()
        self._events: list[tuple[float, int, _Worker | None, _Sequence | None]] = []
        for request, outcome in zip(traffic.requests, self._outcomes, strict=True):
            self._at(request.at_s, None, _Sequence(request, outcome))

    def _at(self, when: float, worker: _Worker | None, sequence: _Sequence | None) -> None:
        heapq.heappush(self._events, (when, next(self._order), worker, sequence))

    def run(self) -> list[Outcome]:
        while self._events:
            now, _, worker, sequence = heapq.heappop(self._events)
            if worker is None:
                assert sequence is not None
                worker = self._route(sequence)
            elif sequence is not None:
                worker.num_coming -= 1
                worker.arrived.append(sequence)
            else:
                self._step_ends(worker, now)
            if not worker.is_busy:
                self._begin(worker, now)
        return self._outcomes

    def _route(self, sequence: _Sequence) -> _Worker:
        """Give a prompt to the worker that is predicted to be done first; among equals, to that with the fewest rows."""
        takers = self._prefill or self._decode
        if self._layout.auto:
            takers = [*self._prefill, *self._decode]
        length = sequence.request.input_len
        worker = min(takers, key=lambda w: ((w.num_queued + length) / self._rate(w), w.rows))
        worker.waiting.append(sequence)
        worker.num_queued += length
        return worker

    def _rate(self, worker: _Worker) -> float:
        """Predict how many prompt tokens a worker computes a second, beside what runs there."""
        rows, context = worker.rows, worker.context
        tokens = max(worker.chunks.most(self._times, rows, context, 1024, 1), 0)
        seconds = self._times.seconds(rows, context, tokens, tokens * (1024 + tokens))
        return max(tokens, 1) / seconds

    # -- steps

    def _begin(self, worker: _Worker, now: float) -> None:
        while worker.arrived and self._admits(worker, worker.arrived[0]):
            sequence = worker.arrived.popleft()
            worker.held += sequence.num_kv
            self._join(worker, sequence)
        rows, context = worker.rows, worker.context
        tokens, pairs = self._take_chunks(worker, rows, context, now)
        if not rows and not tokens:
            return
        worker.is_busy = True
        worker.num_steps += 1
        self._at(now + self._times.seconds(rows, context, tokens, pairs), worker, None)

    def _take_chunks(self, worker: _Worker, rows: int, context: int, now: float) -> tuple[int, int]:
        """Take prompts' chunks into the step, as many as its size or time allows."""
        tokens = pairs = 0
        most: int | None = None
        while worker.waiting:
            sequence = worker.waiting[0]
            start = sequence.num_computed
            if start == 0 and not self._admits(worker, sequence):
                break
            if most is None:
                most = worker.chunks.most(self._times, rows, context, start, worker.num_steps)
            size = min(most - tokens, sequence.request.input_len - start)
            if size <= 0:
                break
            if start == 0:
                worker.held += sequence.num_kv
                sequence.begun_at = now
            sequence.num_computed += size
            tokens, pairs = tokens + size, pairs + size * (start + size)
            worker.num_queued -= size
            if sequence.num_computed < sequence.request.input_len:
                break
            worker.ends.append(worker.waiting.popleft())
        return tokens, pairs

    def _admits(self, worker: _Worker, sequence: _Sequence) -> bool:
        """Say whether there is a place; one that is too large for any worker is taken alone."""
        has_room = worker.held + sequence.num_kv <= self._layout.kv_tokens or worker.held == 0
        if worker.is_prefill:
            return has_room
        rows = worker.rows + len(worker.ends)
        mean_len = (worker.context + sequence.num_kv) // (worker.rows + 1)
        return has_room and rows < worker.chunks.most_rows(mean_len)

    def _step_ends(self, worker: _Worker, now: float) -> None:
        worker.is_busy = False
        if worker.rows:
            worker.stepped_at.append(now)
            worker.context += worker.rows
            for sequence in worker.leaving.pop(len(worker.stepped_at) - 1, ()):
                self._leave(worker, sequence)
        for sequence in worker.ends:
            sequence.first_at = now
            sequence.outcome.first_s = now - sequence.request.at_s
            if sequence.request.output_len == 1:
                worker.held -= sequence.num_kv
            elif worker.is_prefill:
                worker.held -= sequence.num_kv
                self._hand_over(worker, sequence, now)
            else:
                self._join(worker, sequence)
        worker.ends = []

    def _join(self, worker: _Worker, sequence: _Sequence) -> None:
        worker.rows += 1
        worker.context += sequence.request.input_len + 1
        sequence.joined_at = len(worker.stepped_at)
        last = sequence.joined_at + sequence.request.output_len - 2
        worker.leaving.setdefault(last, []).append(sequence)

    def _leave(self, worker: _Worker, sequence: _Sequence) -> None:
        worker.rows -= 1
        worker.context -= sequence.num_kv
        worker.held -= sequence.num_kv
        times = worker.stepped_at[sequence.joined_at :]
        begun_at = self._held_first(sequence, times[0])
        sequence.outcome.first_s = begun_at - sequence.request.at_s
        sequence.outcome.gaps_s = [later - earlier for earlier, later in pairwise((begun_at, *times))]

    def _held_first(self, sequence: _Sequence, second_at: float) -> float:
        """Let the first token wait for the second."""
        return max(sequence.first_at, min(second_at, sequence.request.at_s + self._layout.hold_s))

    def _hand_over(self, worker: _Worker, sequence: _Sequence, now: float) -> None:
        """Send the KV: while later chunks are computed, behind what the link still carries, the last chunk's after its end."""
        layout, length = self._layout, sequence.request.input_len
        per_token_s = layout.kv_token_nbytes / max(layout.link_bytes_s, 1e-9)
        last = (length - 1) % worker.chunks.tokens + 1
        began_at = max(worker.link_free_at, sequence.begun_at)
        worker.link_free_at = max(began_at + length * per_token_s, now + last * per_token_s)
        decode = min(self._decode, key=lambda w: w.rows + len(w.arrived) + w.num_coming)
        decode.num_coming += 1
        self._at(worker.link_free_at + _LINK_S, decode, sequence)


def gaps_of(outcomes: Sequence[Outcome]) -> list[float]:
    """Return all gaps, in order."""
    return sorted(gap for outcome in outcomes for gap in outcome.gaps_s)
