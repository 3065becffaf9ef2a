"""Whose rows a step has, where all of them would make it too long for a tenant that asks for little.

A tenant's due is the step that it would have alone, times all tenants' weights over its own. The least due that there is
bounds the step, or the gap that the pace allows, if that is longer: the rows of who has many take turns then, and those
of who has few are in every step. Where everybody's rows keep to the bound, the step has them all: rows cost little, as on
most GPUs, or tenants ask for about the same, or one is alone.

Smaller steps compute fewer tokens a second, as each reads the weights: the flood of a demo model on a CPU loses a third
while another is served.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from baton.engine.sequence import Sequence
from baton.step_pace import StepPace
from baton.step_times import StepTimes

_CHUNKS = {False: 1 / 3, True: 1 / 2}
"""Of a bounded step, for chunks where there are any: as much as a pace gives them beside rows, without and with a tenant
that has no row yet."""
_ROUNDING_S = 1e-9


@dataclass(slots=True)
class _Demand:
    """What one tenant would have in the step."""

    weight: float
    rows: list[Sequence] = field(default_factory=list)
    context: int = 0
    tokens: int = 0
    pairs: int = 0

    def seconds(self, times: StepTimes) -> float:
        return times.seconds(len(self.rows), self.context, self.tokens, self.pairs)


class StepShares:
    """Choose rows, step by step."""

    def __init__(self) -> None:
        self._queues: dict[bytes, dict[Sequence, None]] = {}
        """By tenant, in the order of their turns."""
        self.has_newcomer = False
        """Whether, in the last step chosen, one tenant has chunks and no row beside others' rows."""

    def left_out(self, running: Iterable[Sequence], newcomer: Sequence | None, pace: StepPace) -> set[Sequence]:
        """Say which running sequences, of those that lack one token, wait for a later step; `newcomer` is to be admitted."""
        demands = _demands(running, newcomer)
        times, weights = pace.times, sum(demand.weight for demand in demands.values())
        due_s = min(demand.seconds(times) * weights / demand.weight for demand in demands.values())
        most_s = max(due_s, pace.target_s)
        self.has_newcomer = any(demand.tokens and not demand.rows for demand in demands.values())
        if any(demand.tokens for demand in demands.values()):
            most_s *= 1 - _CHUNKS[self.has_newcomer]
        crowds = {tenant: demand for tenant, demand in demands.items() if demand.rows}
        num_rows = sum(len(demand.rows) for demand in crowds.values())
        context = sum(demand.context for demand in crowds.values())
        if len(demands) < 2 or times.seconds(num_rows, context) <= most_s:
            self._queues.clear()
            return set()
        self._queues = {tenant: self._queues.get(tenant, {}) for tenant in crowds}
        left: set[Sequence] = set()
        free_s, weights = most_s - times.step, sum(demand.weight for demand in crowds.values())
        # who wants least for its weight first: what it leaves is for the others
        for tenant in sorted(crowds, key=lambda each: _cost(crowds[each], times) / crowds[each].weight):
            demand = crowds[tenant]
            share_s = free_s * demand.weight / weights
            free_s -= min(share_s, _cost(demand, times))
            weights -= demand.weight
            left.update(self._take(tenant, demand.rows, share_s, times))
        return left

    def _take(self, tenant: bytes, rows: list[Sequence], share_s: float, times: StepTimes) -> list[Sequence]:
        """Give the next in the queue their turn, one at least; return the others."""
        present = set(rows)
        queue = {sequence: None for sequence in self._queues[tenant] if sequence in present}
        queue.update(dict.fromkeys(rows))  # who is new comes last
        in_order, num_taken = list(queue), 0
        for num_taken, sequence in enumerate(in_order):
            share_s -= times.row + times.context * sequence.num_computed
            if num_taken and share_s < -_ROUNDING_S:
                break
        else:
            num_taken = len(in_order)
        self._queues[tenant] = dict.fromkeys(in_order[num_taken:] + in_order[:num_taken])
        return in_order[num_taken:]


def _cost(demand: _Demand, times: StepTimes) -> float:
    return times.row * len(demand.rows) + times.context * demand.context


def _demands(running: Iterable[Sequence], newcomer: Sequence | None) -> dict[bytes, _Demand]:
    demands: dict[bytes, _Demand] = {}
    for sequence in (*running, newcomer) if newcomer is not None else running:
        share = sequence.share
        demand = demands.get(share.tenant)
        if demand is None:
            demand = demands[share.tenant] = _Demand(share.weight)
        start = sequence.num_computed
        num_lacking = len(sequence.token_ids) + sequence.num_pending - start
        if num_lacking == 1 and sequence is not newcomer:
            demand.rows.append(sequence)
            demand.context += start
        elif num_lacking > 0:
            demand.tokens += num_lacking
            demand.pairs += num_lacking * (start + num_lacking)
    return demands
