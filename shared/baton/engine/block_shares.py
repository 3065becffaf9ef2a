"""Whose blocks are given up where the pool is short: those of a tenant that holds more than its part, by weight.

Its first sequence keeps its blocks whatever they are, so that each tenant comes to an end with one after another.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from baton.engine.sequence import Sequence


@dataclass(slots=True)
class _Holding:
    """What one tenant holds."""

    weight: float
    sequences: list[Sequence] = field(default_factory=list)
    num_slots: int = 0


class BlockShares:
    """What tenants hold at one moment."""

    def __init__(self, holders: Iterable[Sequence]) -> None:
        """`holders` are all that hold blocks and could give them up, by rank."""
        self._holdings: dict[bytes, _Holding] = {}
        for sequence in holders:
            holding = self._holdings.get(sequence.share.tenant)
            if holding is None:
                holding = self._holdings[sequence.share.tenant] = _Holding(sequence.share.weight)
            holding.sequences.append(sequence)
            holding.num_slots += sequence.num_slots

    def is_within(self, sequence: Sequence) -> bool:
        """Whether a sequence's tenant would hold no more than its part of what all hold, with this one's tokens too."""
        own = self._holdings.get(sequence.share.tenant, _Holding(sequence.share.weight))
        num_slots = own.num_slots + len(sequence.token_ids) - sequence.num_slots
        return num_slots <= self._part(own.weight, own.weight if not own.sequences else 0.0)

    def victim(self, needy: Sequence | None = None) -> Sequence | None:
        """The last sequence of who holds the most over its part, beside a needy one's; None: nobody has one to give."""
        coming = 0.0 if needy is None or needy.share.tenant in self._holdings else needy.share.weight
        greediest: _Holding | None = None
        for each in self._holdings.values():
            is_over = len(each.sequences) > 1 and each.num_slots > self._part(each.weight, coming)
            if is_over and (greediest is None or _level(each) > _level(greediest)):
                greediest = each
        return None if greediest is None else greediest.sequences[-1]

    def give_up(self, sequence: Sequence) -> None:
        """Count a victim out."""
        holding = self._holdings[sequence.share.tenant]
        holding.sequences.remove(sequence)
        holding.num_slots -= sequence.num_slots

    def _part(self, weight: float, coming: float) -> float:
        """What a tenant's part of all that is held would be, with so much more weight."""
        num_slots = sum(each.num_slots for each in self._holdings.values())
        return num_slots * weight / (coming + sum(each.weight for each in self._holdings.values()))


def _level(holding: _Holding) -> float:
    return holding.num_slots / holding.weight
