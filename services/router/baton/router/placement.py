"""Placement: brings a request, the workers and the index together for `policy.choose`."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Callable, Sequence
from statistics import fmean

import msgspec

from baton.messages import Load
from baton.metrics import RouterMetrics
from baton.router.config import PathMode, RouterConfig
from baton.router.costs import Candidate, Shape, Weights
from baton.router.generation import Generation, hash_prompt
from baton.router.index import PrefixIndex
from baton.router.links import kept
from baton.router.policy import Decision, choose
from baton.router.pool import Worker, WorkerPool
from baton.router.turnover import AnswerLength, Batch, num_places, wait_s

_USUAL = 2048
"""Tokens of a prompt by which workers are compared."""


class Placement:
    """Decides where requests go now."""

    def __init__(
        self,
        config: RouterConfig,
        pool: WorkerPool,
        index: PrefixIndex,
        metrics: RouterMetrics,
        rng: random.Random,
        batch_of: Callable[[Worker, AnswerLength], Batch],
    ) -> None:
        """`batch_of` tells what decodes on a worker, as far as we know."""
        self._config = config
        self._pool = pool
        self._index = index
        self._metrics = metrics
        self._turn = 0
        self._rng = rng
        self._batch_of = batch_of
        self.answer_length = AnswerLength()

    def place(self, generation: Generation, num_emitted: int, avoid: str | None) -> Decision | None:
        """Choose the workers of a request whose client has `num_emitted` tokens; None with no worker to take it.

        `avoid` is passed over where another worker can decode.
        """
        started = time.perf_counter()
        workers = [w for w in self._pool.workers.values() if w.can_decode or w.can_prefill]
        if avoid is not None and any(w.can_decode and w.worker_id != avoid for w in workers):
            workers = [w for w in workers if w.worker_id != avoid]
        if not workers:
            return None
        candidates = [self._candidate(worker, generation) for worker in workers]
        pin = generation.pin if not num_emitted and avoid is None else None  # of the first attempt
        path = self._config.path if pin is None else pin.path or self._config.path
        if pin is not None:
            candidates = pin.narrow(candidates)
        shape = _shape(generation, num_emitted, workers[0])
        # what was emitted is only at a decode worker's to compute: the first token is known already
        decision = self._choose(shape, candidates, "local" if num_emitted else path)
        self._metrics.phase_seconds.observe("route", time.perf_counter() - started)
        return decision

    def place_again(self, generation: Generation, num_emitted: int, worker: Worker) -> Decision | None:
        """Keep a request on the decode worker that has the KV of all that it said; None: it takes none now."""
        if not worker.can_decode:
            return None
        shape = _shape(generation, num_emitted, worker)
        return self._choose(shape, [self._candidate(worker, generation)], "local")

    def place_moved(self, generation: Generation, num_emitted: int, source: Worker) -> Decision | None:
        """Choose who goes on with a request of a worker that drains, with its KV; None: nobody can now, or it has not got it."""
        others = [each for each in self._pool.workers.values() if each.can_decode and each is not source]
        giver = self._candidate(source, generation)
        if not others or giver.cached_blocks < len(generation.hashes[source.info.model.cache_parts]):
            return None
        shape = _shape(generation, num_emitted, source)
        giver = dataclasses.replace(
            giver, can_prefill=True, can_decode=False, cached_blocks=shape.num_blocks - 1, free_blocks=shape.num_blocks
        )
        candidates = [giver, *(self._candidate(each, generation) for each in others)]
        decision = self._choose(shape, candidates, "remote")
        if decision is None or decision.chosen.prefill is None:
            return None
        terms = decision.chosen.terms
        return None if terms["wait_blocks"] or terms["wait_place"] else decision

    def take(self, decision: Decision) -> None:
        """Count a decision that is carried out."""
        self._turn += 1
        self._metrics.route_decisions.inc(decision.chosen.path)

    def num_uncached(self, worker: Worker, generation: Generation) -> int:
        """How much of a prompt a worker that was placed has to compute."""
        facts = worker.info.model
        num_known = sum(self._num_known(worker, generation.hashes[facts.cache_parts]))
        return max(len(generation.prompt) - num_known * facts.block_size, 1)

    def _num_known(self, worker: Worker, hashes: Sequence[bytes]) -> tuple[int, int]:
        """Count the first blocks that a worker has, and those after them that the store of its host has."""
        num_cached = self._index.num_cached(worker.worker_id, hashes)
        return num_cached, self._index.num_stored(worker.store, hashes, num_cached)

    def _choose(self, shape: Shape, candidates: Sequence[Candidate], path: PathMode) -> Decision | None:
        return choose(
            self._config.policy,
            shape,
            like_peers(candidates, self._config.default_prefill_rate),
            self._pool.links,
            path=path,
            weights=Weights(
                self._config.interference_weight, self._config.ttft_target_ms, self._config.itl_target_ms > 0
            ),
            turn=self._turn,
            now=self._pool.clock(),
            rng=self._rng,
        )

    def _queue_tokens(self, worker: Worker, generation: Generation) -> int:
        """How many prompt tokens a worker computes before a request's own."""
        share, own = generation.share, len(generation.prompt)
        before = worker.queued.before(share, own)
        # whose the others' are is not known: those of one tenant, of the same weight
        others = min(worker.other_tokens, before + own) if share.tenant else worker.other_tokens
        return int(before + others)

    def _queue_s(self, worker: Worker, generation: Generation, rate: float) -> float:
        """Predict how long that takes, of which some is done already."""
        ours = worker.queued.total
        own_s = worker.lane.work_left(self._pool.clock()) * worker.queued.before(
            generation.share, len(generation.prompt)
        )
        return (own_s / ours if ours else 0.0) + worker.other_tokens / rate

    def _place_ms(self, worker: Worker, num_here: int, generation: Generation) -> float:
        """Predict how long a request waits for its places in a worker's batch."""
        load, length = worker.load, self.answer_length
        places, num_new = num_places(load, worker.info.num_places), generation.params.n + generation.num_ahead
        if worker.step_pace is not None:
            places = min(places, worker.step_pace.most_rows(_context(load, 1, len(generation.prompt))))
        if num_here + num_new <= places:
            return 0.0
        batch = self._batch_of(worker, length)
        position = batch.position(generation.share, num_new, num_here, places)
        mean = length.predict(generation.params.max_tokens)
        return 1000 * wait_s(position, places, batch.left, mean, worker.pace.seconds)

    def _candidate(self, worker: Worker, generation: Generation) -> Candidate:
        load, facts = worker.load, worker.info.model
        num_here = worker.num_choices + worker.other_choices
        running = num_here if worker.can_decode else max(num_here, len(worker.request_ids))
        hashes = generation.hashes.get(facts.cache_parts)
        if hashes is None:  # the same for all workers of one build
            hashes = hash_prompt(generation, facts.cache_parts, self._config.cache_key, facts.block_size)
            generation.hashes[facts.cache_parts] = hashes
        pace, with_it, num_tokens = worker.step_pace, running + generation.params.n, len(generation.prompt)
        if pace is None:
            step_ms, rate = worker.steps.predict(with_it), load.prefill_rate
        else:
            most = pace.most_rows(_context(load, 1, num_tokens))  # more wait for a place
            running, with_it = min(running, most), min(with_it, most)
            step_ms = 1000 * pace.times.seconds(with_it, _context(load, with_it, num_tokens))
            rate = _USUAL / pace.times.prompt_seconds(_USUAL)
        num_cached, num_stored = self._num_known(worker, hashes)
        return Candidate(
            worker_id=worker.worker_id,
            can_prefill=worker.can_prefill,
            can_decode=worker.can_decode,
            layout=worker.info.layout,
            queue_tokens=self._queue_tokens(worker, generation),
            prefill_rate=rate,
            cached_blocks=num_cached,
            stored_blocks=num_stored,
            num_running=running,
            step_ms=step_ms,
            free_blocks=load.kv_free_blocks if load.kv_total_blocks else 1 << 30,
            total_blocks=load.kv_total_blocks or 1 << 30,
            idle_s=self._pool.clock() - worker.worked_at,
            place_ms=self._place_ms(worker, num_here, generation) if worker.can_decode else 0.0,
            pace=pace,
            context_tokens=_context(load, running, num_tokens),
            queue_s=None if pace is None else self._queue_s(worker, generation, rate),
            link_s=worker.lane.link_left(self._pool.clock()),
        )


def _context(load: Load, num_running: int, num_tokens: int) -> int:
    """Guess how many tokens so many sequences read in each step."""
    return num_running * (load.context_tokens // load.num_running if load.num_running else num_tokens)


def _shape(generation: Generation, num_emitted: int, worker: Worker) -> Shape:
    num_tokens, block_size = len(generation.prompt) + num_emitted, worker.info.model.block_size
    return Shape(num_tokens, block_size, math.ceil((num_tokens + 1) / block_size))


def like_peers(candidates: Sequence[Candidate], default_prefill_rate: float) -> list[Candidate]:
    """Take a worker for one like the others as far as it is not known.

    One that has not reported is taken for their mean: a better guess would draw all requests to it. What was learned of one
    that got nothing while others worked fades towards their mean too, and never beyond.
    """
    rates = [c.prefill_rate for c in candidates if c.prefill_rate]
    rate = fmean(rates) if rates else default_prefill_rate
    steps = [c.step_ms for c in candidates if c.can_decode and c.step_ms]
    step_ms = fmean(steps) if steps else 0.0
    last_s = min((c.idle_s for c in candidates), default=0.0)
    seconds = [1 / r for r in rates]  # a token, which add up as step times do
    like = []
    for c in candidates:
        own_rate, own_step_ms, age_s = c.prefill_rate, c.step_ms, c.idle_s - last_s
        if age_s > 1.0:  # not the usual case
            own_rate = own_rate and 1 / _faded(1 / own_rate, seconds, age_s)
            own_step_ms = own_step_ms and c.can_decode and _faded(own_step_ms, steps, age_s)
        pace = c.pace
        if pace is not None and own_rate != c.prefill_rate:
            pace = msgspec.structs.replace(pace, times=pace.times.scaled(c.prefill_rate / own_rate))
        like.append(dataclasses.replace(c, prefill_rate=own_rate or rate, step_ms=own_step_ms or step_ms, pace=pace))
    return like


def _faded(value: float, all_values: Sequence[float], age_s: float) -> float:
    """Return what was learned so long ago, between itself and the mean of the others; `all_values` has it too."""
    num_others = len(all_values) - 1
    if num_others < 1:
        return value
    others = (sum(all_values) - value) / num_others
    return others + (value - others) * kept(age_s)
