"""What a request costs on each way, in ms: predicted from what is known of workers and links.

    with P   queue(P) + load(P) + prefill(P) + transfer(link) + queue(link) + wait(D) + interference(P, D) + misses
    alone    queue(D) + load(D) + prefill(D)                                + wait(D) + interference(D)    + misses

The first token of a pair does not wait for D; all else of its terms comes before the second one.

queue         what was asked of a worker before, in seconds by its own step times, less what is done of it; for a link, what
              is still to be sent to anybody. Without step times: tokens over the worker's rate
load          blocks of the prompt that the store of the worker's host has: they are copied, not computed
prefill       the prompt's own steps. Beside decodes they are as long as the worker's target for gaps lets them be, and
              hold as many of its tokens as fit: the fuller the batch, the longer it takes
transfer      the part of the KV transfer that the prefill does not hide: the last chunk's, or all that a slow link lags behind
wait          for KV blocks, when a worker of the two has too few free ones; and what is left of the wait for a place in its batch
              when the terms before it are over
interference  pace: the steps that this request will take, at D's predicted step time; and delay: what each running stream
              of the worker that computes this prompt loses meanwhile, weighted. A P that decodes too (`--also-prefill`)
              has streams, so an idle one lends itself to others and a busy one is dear: nothing else makes it do either
misses        requests, this one and those beside it, that would miss a stated target, each as `MISS_MS`: first as few
              misses as can be, then milliseconds. Near a target a part of one, as no prediction is exact
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from baton.router.links import Link
from baton.step_pace import BREAK_EVERY, StepPace

PACE_STEPS = 16
"""Steps by which a slow batch counts against a worker; more would send long prompts away from their cache."""
MISS_MS = 10_000.0
_LOAD_MS = 2.0
"""To ask a store and to start copies."""
_LOAD_MS_PER_TOKEN = 0.006
"""To copy KV from a store: 20 GB/s for an 8B model, a quarter of what computing it takes there."""
_BLOCK_WAIT_MS = 2.0
"""Per missing block: about what a running batch takes to free one."""
_LEAST_CHUNK = 16
_BROKEN = 0.5
"""Of the streams beside a step that breaks their target: how many miss it by that, as one gap in a hundred may be long."""
_SPREAD = 0.2
"""Of a time to a first token that is predicted: how far the true one lies from it."""
_STEP_SPREAD = 0.03


@dataclass(frozen=True, slots=True)
class Candidate:
    """One live worker, as this request sees it."""

    worker_id: str
    can_prefill: bool
    can_decode: bool
    layout: str
    queue_tokens: int
    """Prompt tokens asked of it and not computed."""
    prefill_rate: float
    """Tokens a second; 0: not known yet, which `choose` does not take."""
    cached_blocks: int
    """Blocks of this prompt that it has."""
    num_running: int = 0
    step_ms: float = 0.0
    """Predicted time of a decode step with this request in the batch."""
    free_blocks: int = 1 << 30
    total_blocks: int = 1 << 30
    idle_s: float = 0.0
    """Since its last step, by which its rate and step time were learned."""
    place_ms: float = 0.0
    """Predicted wait for a place in its batch."""
    pace: StepPace | None = None
    """Its step times, and what it keeps to; None: not known."""
    context_tokens: int = 0
    """Of all running sequences."""
    queue_s: float | None = None
    """Predicted until what was asked of it is computed; None: by tokens and rate."""
    link_s: float = 0.0
    """Predicted until what it was asked to send is sent."""
    stored_blocks: int = 0
    """Blocks of this prompt that follow on `cached_blocks` and that the store of its host has."""

    @property
    def queue_ms(self) -> float:
        """Predicted wait for those before."""
        return 1000 * (self.queue_tokens / self.prefill_rate if self.queue_s is None else self.queue_s)


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a request matters for its route."""

    num_tokens: int
    block_size: int
    num_blocks: int
    """Blocks that it will come to need on D."""


@dataclass(frozen=True, slots=True)
class Weights:
    """How things that are no wait of this request count."""

    interference: float = 0.05
    ttft_target_ms: float = 0.0
    """0: none."""
    holds: bool = False
    """Whether the first token waits for the second."""


NO_TARGET = Weights()
_QUEUES = {"remote": "queue_p", "local": "queue_d"}


@dataclass(frozen=True, slots=True)
class Option:
    """One way to serve a request, with each term of its cost in ms. As JSON it is shown by /debug/route."""

    path: Literal["local", "remote"]
    """Remote with a prefill worker."""
    decode: str
    prefill: str | None
    cost_ms: float
    terms: Mapping[str, float] = field(default_factory=dict)
    first_wait_ms: float = 0.0
    """What it waits for others before its first token."""
    busy_ms: float = 0.0
    """For how long its transfer has the link to itself."""

    @property
    def wait_ms(self) -> float:
        """What it waits for others before its second token."""
        terms = self.terms
        return terms[_QUEUES[self.path]] + terms.get("queue_link", 0.0) + terms["wait_blocks"] + terms["wait_place"]


@dataclass(frozen=True, slots=True)
class Part:
    """What a request meets on one worker, whatever the other one of a pair; in ms."""

    worker_id: str
    queue: float
    link: float
    """Until what it was asked to send is sent."""
    load: float
    prefill: float
    delay: float
    """What the prompt costs the streams beside it, weighted."""
    broken: float
    """How many of them miss their target for it."""
    missing: int
    """Tokens whose KV would be fetched, if it decodes."""
    wait_blocks: float
    place: float
    pace: float
    crowded: float
    """How many streams miss their target with one more beside them."""


def part_of(worker: Candidate, shape: Shape, weights: Weights) -> Part:
    """Predict what a request meets on a worker."""
    prefill_ms, delay_ms, num_broken = _prefill(shape, worker)
    num_running = worker.num_running if worker.can_decode else 0  # one that only prefills has no streams
    return Part(
        worker.worker_id,
        worker.queue_ms,
        1000 * worker.link_s,
        worker.stored_blocks and _LOAD_MS + _LOAD_MS_PER_TOKEN * worker.stored_blocks * shape.block_size,
        prefill_ms,
        weights.interference * num_running * delay_ms,
        num_running * (1 - (1 - _BROKEN) ** num_broken),
        # the KV of the last one is computed there
        max(shape.num_tokens - worker.cached_blocks * shape.block_size, 1),
        _BLOCK_WAIT_MS * max(shape.num_blocks - worker.cached_blocks - worker.free_blocks, 0),
        worker.place_ms,
        PACE_STEPS * worker.step_ms,
        _crowded(worker),
    )


def remote(prefill: Part, decode: Part, link: Link, weights: Weights, now: float) -> Option:
    """Predict the way over a prefill worker."""
    busy_ms, transfer_ms = link.busy_ms(decode.missing, now), link.exposed_ms(decode.missing, prefill.prefill, now)
    computed_ms = prefill.queue + prefill.load + prefill.prefill
    link_ms = max(prefill.link + link.fixed_ms + busy_ms - computed_ms - transfer_ms, 0.0)
    blocks_ms = decode.wait_blocks + prefill.wait_blocks
    ready_ms = computed_ms + transfer_ms + link_ms + blocks_ms
    place_ms = max(decode.place - ready_ms, 0.0)  # it queues for its place while the prompt is computed
    misses = _late(ready_ms + place_ms, weights) + decode.crowded + prefill.broken
    terms = {
        "queue_p": prefill.queue,
        "load": prefill.load,
        "prefill": prefill.prefill,
        "transfer": transfer_ms,
        "queue_link": link_ms,
        "wait_blocks": blocks_ms,
        "wait_place": place_ms,
        "pace": decode.pace,
        "delay": prefill.delay,
        "misses": MISS_MS * misses,
    }
    first_wait_ms = prefill.queue + link_ms + place_ms if weights.holds else prefill.queue
    return Option("remote", decode.worker_id, prefill.worker_id, sum(terms.values()), terms, first_wait_ms, busy_ms)


def local(decode: Part, weights: Weights) -> Option:
    """Predict the way of a decode worker alone."""
    place_ms = max(decode.place - decode.queue, 0.0)  # prompts that wait for a place are in its queue too
    wait_ms = decode.queue + decode.wait_blocks + place_ms
    misses = _late(wait_ms + decode.load + decode.prefill, weights) + decode.crowded + decode.broken
    terms = {
        "queue_d": decode.queue,
        "load": decode.load,
        "prefill": decode.prefill,
        "wait_blocks": decode.wait_blocks,
        "wait_place": place_ms,
        "pace": decode.pace,
        "delay": decode.delay,
        "misses": MISS_MS * misses,
    }
    return Option("local", decode.worker_id, None, sum(terms.values()), terms, wait_ms)


def _prefill(shape: Shape, worker: Candidate) -> tuple[float, float, int]:
    """Predict how long a prompt takes, how much later each stream beside it gets its tokens, and steps that break their target."""
    known, pace = worker.cached_blocks + worker.stored_blocks, worker.pace
    num_tokens = max(shape.num_tokens - known * shape.block_size, 1)  # at least one, since its logits are needed
    if pace is None:
        ms = 1000 * num_tokens / worker.prefill_rate
        return ms, ms, 0
    rows = worker.num_running if worker.can_decode else 0
    times, start = pace.times, shape.num_tokens - num_tokens
    if not rows:
        return 1000 * times.prompt_seconds(num_tokens, start), 0.0, 0
    context, middle = worker.context_tokens, start + num_tokens // 2
    step_s, most_s, num_broken = times.seconds(rows, context), pace.most_s(rows, context), 0
    chunk = times.most_tokens(most_s, rows, context, start=middle, most=num_tokens)
    if chunk < min(_LEAST_CHUNK, num_tokens):
        most_s = pace.broken_s(rows, context)
        chunk = max(times.most_tokens(most_s, rows, context, start=middle, most=num_tokens), 1)
        num_broken = math.ceil(num_tokens / chunk)
    num_steps = num_tokens / chunk
    mixed_s = times.seconds(rows, context, chunk, chunk * (middle + chunk))
    waits_s = BREAK_EVERY * step_s * num_broken
    return 1000 * (num_steps * mixed_s + waits_s), 1000 * num_steps * (mixed_s - step_s), num_broken


def _late(first_ms: float, weights: Weights) -> float:
    """Predict whether a first token comes too late."""
    target_ms = weights.ttft_target_ms
    return _above(first_ms, target_ms, _SPREAD * target_ms) if target_ms else 0.0


def _crowded(worker: Candidate) -> float:
    """Predict how many streams miss a target that somebody has asked for, with one more beside them."""
    pace = worker.pace
    if pace is None or not pace.target_s or pace.slower or not worker.can_decode:
        return 0.0
    target_ms = 1000 * pace.target_s
    return (1 + worker.num_running) * _above(worker.step_ms, target_ms, _STEP_SPREAD * target_ms)


def _above(value: float, limit: float, spread: float) -> float:
    """Return how likely it is that a value which is predicted so is above a limit."""
    return 0.5 * (1 + math.tanh((value - limit) / (2 * spread)))
