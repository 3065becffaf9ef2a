"""Where a request goes: a pure function of what is known of the workers, the prompt and the costs.

`choose` predicts, for every decode worker D, alone and with every prefill worker P, what the request costs (`costs.py`):
the milliseconds until its tokens, what it does to those who run beside it, and what they do to it; the least wins.

What was learned counts for half after each `HALF_LIFE_S` in which nothing new is learned, so nobody is passed over for ever:
one slow transfer or step sends requests elsewhere for minutes, then one of them tries again.

Other policies are for comparison; they use the same candidates and refuse the same impossible ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from baton.router.config import PathMode, PolicyName
from baton.router.costs import NO_TARGET, Candidate, Option, Shape, Weights, local, part_of, remote
from baton.router.links import NEW_LINK, Link


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
    weights: Weights = NO_TARGET,
    turn: int = 0,
    now: float = 0.0,
    rng: random.Random,
) -> Decision | None:
    """Pick the workers for one request; None when no decode worker could take it.

    `turn` counts decisions, for round-robin; `now` is of the clock by which links were learned. Equal costs are decided by `rng`.
    """
    options = list(_options(shape, candidates, links, path, weights, now))
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
    weights: Weights,
    now: float,
) -> Iterable[Option]:
    decodes = [c for c in candidates if c.can_decode and c.total_blocks >= shape.num_blocks]
    prefills = [c for c in candidates if c.can_prefill]
    parts = {c.worker_id: part_of(c, shape, weights) for c in candidates}
    for decode in decodes:
        partners = [p for p in prefills if p.layout == decode.layout and p.worker_id != decode.worker_id]
        if path == "local":
            partners = []
        for prefill in partners:
            link = links.get((prefill.worker_id, decode.worker_id), NEW_LINK)
            yield remote(parts[prefill.worker_id], parts[decode.worker_id], link, weights, now)
        if path != "remote" or not partners:  # with no prefill worker alive everything still works
            yield local(parts[decode.worker_id], weights)


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
