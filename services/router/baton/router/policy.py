"""Where a request goes: a pure function of what is known of the workers, the prompt and the costs.

`choose` predicts, for every decode worker D, alone and with every prefill worker P, the milliseconds until the first
token, what the request does to those who run beside it, and what they do to it; the least wins:

    with P   queue(P) + uncached(P) / rate(P) + transfer(missing(D), link(P, D)) + wait(D) + interference(P, D)
    alone    queue(D) + uncached(D) / rate(D)                                    + wait(D) + interference(D)

The first token of a pair does not wait for D; all else of its terms comes before the second one.

queue         tokens asked for before, over the worker's rate
transfer      the part of the KV transfer that the prefill does not hide, as learned for this pair
wait          for KV blocks, when a worker of the two has too few free ones; and what is left of the wait for a place in its batch
              when the terms before it are over
interference  pace: the steps that this request will take, at D's predicted step time; and delay: what each running stream
              of the worker that computes this prompt loses meanwhile, weighted. A P that decodes too (`--also-prefill`)
              has streams, so an idle one lends itself to others and a busy one is dear: nothing else makes it do either

What was learned counts for half after each `HALF_LIFE_S` in which nothing new is learned, so nobody is passed over for ever:
one slow transfer or step sends requests elsewhere for minutes, then one of them tries again.

Other policies are for comparison; they use the same candidates and refuse the same impossible ones.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from baton.router.config import PathMode, PolicyName

PACE_STEPS = 16
"""Steps by which a slow batch counts against a worker; more would send long prompts away from their cache."""
HALF_LIFE_S = 15.0
"""Of what was learned; a link that once took 12 s is as good as a new one after three minutes."""
_BLOCK_WAIT_MS = 2.0
"""Per missing block: about what a running batch takes to free one."""


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


def kept(age_s: float) -> float:
    """Return the weight of what was learned so long ago, 0 to 1."""
    return math.exp2(-max(age_s, 0.0) / HALF_LIFE_S)


@dataclass(frozen=True, slots=True)
class Link:
    """What a transfer between two workers adds after the prefill."""

    fixed_ms: float = 3.0
    ms_per_token: float = 0.002
    num_learned: float = 1000.0
    """Tokens of which `ms_per_token` is the mean; transfers long past count less."""
    learned_at: float = 0.0

    def learn(self, num_tokens: int, exposed_seconds: float, now: float) -> Link:
        """Return the link as it is known after one more transfer."""
        exposed_ms = max(1000 * exposed_seconds - self.fixed_ms, 0.0)
        before = 0.9 * self.num_learned * kept(now - self.learned_at)
        learned = max(before + 0.1 * num_tokens, 1.0)
        ms_per_token = (before * self.ms_per_token + 0.1 * exposed_ms) / learned
        return Link(self.fixed_ms, ms_per_token, learned, now)

    def predict(self, num_tokens: int, now: float) -> float:
        """Predict the ms that a transfer adds; what was learned long ago is forgotten."""
        new = NEW_LINK.ms_per_token
        learned = self.ms_per_token - new
        return self.fixed_ms + num_tokens * (new + (learned and learned * kept(now - self.learned_at)))


NEW_LINK = Link()
_QUEUES = {"remote": "queue_p", "local": "queue_d"}


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a request matters for its route."""

    num_tokens: int
    block_size: int
    num_blocks: int
    """Blocks that it will come to need on D."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to serve a request, with each term of its cost in ms. As JSON it is shown by /debug/route."""

    path: Literal["local", "remote"]
    """Remote with a prefill worker."""
    decode: str
    prefill: str | None
    cost_ms: float
    terms: Mapping[str, float] = field(default_factory=dict)

    @property
    def wait_ms(self) -> float:
        """What it waits for others before its second token."""
        terms = self.terms
        return terms[_QUEUES[self.path]] + terms["wait_blocks"] + terms["wait_place"]

    @property
    def first_wait_ms(self) -> float:
        """What it waits for others before its first token."""
        return self.terms["queue_p"] if self.path == "remote" else self.wait_ms


@dataclass(frozen=True, slots=True)
class Decision:
    """What was chosen, among what."""

    chosen: Option
    considered: Sequence[Option]


def choose(
    policy: PolicyName,
    shape: Shape,
    candidates: Sequence[Candidate],
    links: Mapping[tuple[str, str], Link],
    *,
    path: PathMode = "auto",
    interference_weight: float = 0.05,
    turn: int = 0,
    now: float = 0.0,
    rng: random.Random,
) -> Decision | None:
    """Pick the workers for one request; None when no decode worker could take it.

    `turn` counts decisions, for round-robin; `now` is of the clock by which links were learned. Equal costs are decided by `rng`.
    """
    options = list(_options(shape, candidates, links, path, interference_weight, now))
    if not options:
        return None
    if policy == "round-robin":
        chosen = _in_turn(options, turn)
    else:
        workers = {c.worker_id: c for c in candidates}
        ranked = [_RANKS[policy](option, workers) for option in options]
        best = min(ranked)
        chosen = rng.choice([option for option, rank in zip(options, ranked, strict=True) if rank == best])
    return Decision(chosen, options)


def _options(
    shape: Shape,
    candidates: Sequence[Candidate],
    links: Mapping[tuple[str, str], Link],
    path: PathMode,
    weight: float,
    now: float,
) -> Iterable[Option]:
    decodes = [c for c in candidates if c.can_decode and c.total_blocks >= shape.num_blocks]
    prefills = [c for c in candidates if c.can_prefill]
    for decode in decodes:
        partners = [p for p in prefills if p.layout == decode.layout and p.worker_id != decode.worker_id]
        if path == "local":
            partners = []
        for prefill in partners:
            link = links.get((prefill.worker_id, decode.worker_id), NEW_LINK)
            yield _remote(shape, prefill, decode, link, weight, now)
        if path != "remote" or not partners:  # with no prefill worker alive everything still works
            yield _local(shape, decode, weight)


def _remote(shape: Shape, prefill: Candidate, decode: Candidate, link: Link, weight: float, now: float) -> Option:
    missing = _uncached(shape, decode)
    compute = 1000 * _uncached(shape, prefill) / prefill.prefill_rate
    terms = {
        "queue_p": 1000 * prefill.queue_tokens / prefill.prefill_rate,
        "prefill": compute,
        "transfer": link.predict(missing, now),
        "wait_blocks": _wait_blocks(shape, decode) + _wait_blocks(shape, prefill),
    }
    # it queues for its place while the prompt is computed
    terms["wait_place"] = max(decode.place_ms - sum(terms.values()), 0.0)
    terms["pace"] = PACE_STEPS * decode.step_ms
    terms["delay"] = _delay(prefill, compute, weight)
    return Option("remote", decode.worker_id, prefill.worker_id, sum(terms.values()), terms)


def _local(shape: Shape, decode: Candidate, weight: float) -> Option:
    compute = 1000 * _uncached(shape, decode) / decode.prefill_rate
    queue_ms = 1000 * decode.queue_tokens / decode.prefill_rate
    terms = {
        "queue_d": queue_ms,
        "prefill": compute,
        "wait_blocks": _wait_blocks(shape, decode),
        # prompts that wait for a place are in its queue too
        "wait_place": max(decode.place_ms - queue_ms, 0.0),
        "pace": PACE_STEPS * decode.step_ms,
        "delay": _delay(decode, compute, weight),
    }
    return Option("local", decode.worker_id, None, sum(terms.values()), terms)


def _delay(worker: Candidate, compute_ms: float, weight: float) -> float:
    """Predict what computing a prompt costs the streams of its worker; one that only prefills has none."""
    return weight * worker.num_running * compute_ms if worker.can_decode else 0.0


def _uncached(shape: Shape, worker: Candidate) -> int:
    """Tokens that a worker would compute: at least one, since its logits are needed."""
    return max(shape.num_tokens - worker.cached_blocks * shape.block_size, 1)


def _wait_blocks(shape: Shape, decode: Candidate) -> float:
    return _BLOCK_WAIT_MS * max(shape.num_blocks - decode.cached_blocks - decode.free_blocks, 0)


def _by_load(option: Option, workers: Mapping[str, Candidate]) -> tuple[bool, int]:
    """Tokens and sequences that are ahead, whatever is cached; a prefill worker wherever there is one."""
    used = [workers[worker] for worker in (option.decode, option.prefill) if worker is not None]
    return option.prefill is None, sum(c.queue_tokens + 100 * c.num_running for c in used)


def _by_prefix(option: Option, workers: Mapping[str, Candidate]) -> int:
    """The longest cached prefix where the prompt is computed, whatever the load."""
    return -workers[option.prefill or option.decode].cached_blocks


_RANKS: Mapping[str, Callable[[Option, Mapping[str, Candidate]], Any]] = {
    "cost": lambda option, _: option.cost_ms,
    "least-load": _by_load,
    "prefix-only": _by_prefix,
}
"""Each makes of an option what is least for the best one."""


def _in_turn(options: Sequence[Option], turn: int) -> Option:
    """Each pair in turn; a prefill worker wherever there is one."""
    pairs = [option for option in options if option.prefill] or list(options)
    return sorted(pairs, key=lambda option: (option.decode, option.prefill or ""))[turn % len(pairs)]
