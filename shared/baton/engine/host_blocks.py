"""Blocks that leave the device's pool for a tier of host memory, and those on their way back. No torch, no bytes.

    plan    the prefix cache notes what it gives up; the scheduler asks `find` for each sequence that it could admit, takes
            the places, and hands them over (`begin`): the sequence is `receiving` from then on
    flush   before anything is launched, or places are given away: what was given up is saved, copies that still read those
            blocks are put first, loads are started
    poll    what has come back is queued, and goes on as if a peer had sent it

A sequence asks once for each time that it has lost its blocks: what a tier names and then fails to give is computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from baton.engine.block_pool import BlockPool
from baton.engine.prefix_cache import PrefixCache
from baton.engine.reload_cost import ReloadCost
from baton.engine.sequence import Sequence
from baton.host_tier import HostTier, Lookup


@dataclass(slots=True, eq=False)
class _Asked:
    lookup: Lookup
    names: list[bytes]
    num_known: int
    """Blocks on the device when it was asked; the lookup's come after them."""


@dataclass(slots=True, eq=False)
class _Load:
    sequence: Sequence
    lookup: Lookup
    names: list[bytes]
    block_ids: list[int]
    """Each with a reference of ours."""
    began_at: float = 0.0


class HostBlocks:
    """What an engine has to do with its tier."""

    def __init__(
        self,
        tier: HostTier,
        pool: BlockPool,
        cache: PrefixCache,
        cost: ReloadCost,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.tier = tier
        self.cost = cost
        self._pool = pool
        self._cache = cache
        self._clock = clock
        self._asked: dict[Sequence, _Asked] = {}
        self._begun: list[_Load] = []
        self._loading: dict[int, _Load] = {}  # by the identity of the lookup
        self._coming: set[bytes] = set()  # names of both
        self._polled_at = 0.0
        self.num_restored_tokens = 0
        """Tokens that came back instead of being computed."""
        cache.watch_for_tier(keeps_evicted=tier.saves == "evicted")

    @property
    def num_loading(self) -> int:
        """Sequences whose blocks are on their way back."""
        return len(self._begun) + len(self._loading)

    @property
    def is_busy(self) -> bool:
        """Whether something will come of `poll` without any step."""
        return bool(self._asked or self._begun or self._loading)

    # -- what the scheduler asks --------------------------------------------------------------------------------------

    def find(self, sequence: Sequence, num_known: int, block_size: int) -> int | None:
        """Say how many blocks after the known ones to load for a sequence; None: the tier has not said yet, or another
        sequence has them coming already.

        After a number above 0 comes `begin`.
        """
        asked = self._asked.get(sequence)
        if asked is not None and asked.num_known != num_known and asked.lookup.num_blocks is not None:
            self.forget(sequence)  # others have changed what the device has meanwhile
            asked = None
        if asked is None:
            names = self._names(sequence, num_known, block_size)
            if not names:
                return 0
            if names[0] in self._coming:
                return None
            self._save()  # what this plan has driven out may be what is asked for
            asked = self._asked[sequence] = _Asked(self.tier.look_up(names), names, num_known)
        num_blocks = asked.lookup.num_blocks
        if num_blocks is None or self.cost.is_worth(num_blocks):
            return num_blocks
        self.forget(sequence)
        return 0

    def begin(self, sequence: Sequence, block_ids: list[int]) -> None:
        """Have the blocks that were found come into these places, with the next `flush`."""
        asked = self._asked.pop(sequence)
        names = asked.names[: len(block_ids)]
        self._pool.share(block_ids)
        self._coming.update(names)
        sequence.num_restores = sequence.num_preemptions + 1
        self._begun.append(_Load(sequence, asked.lookup, names, block_ids))

    def forget(self, sequence: Sequence) -> None:
        """End an open question."""
        asked = self._asked.pop(sequence, None)
        if asked is not None:
            self.tier.drop(asked.lookup)

    # -- what the engine does -----------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Start the copies that the last plan asks for; nothing has been written in its blocks yet."""
        self._save()
        for load in self._begun:
            load.began_at = self._clock()
            self._loading[id(load.lookup)] = load
            self.tier.load(load.lookup, load.block_ids)
        self._begun.clear()

    def poll(self) -> list[tuple[Sequence, int]]:
        """Take the sequences whose loads have ended, and how many of their blocks are good.

        They may have ended meanwhile; then their blocks come back here.
        """
        if not self._loading:
            self._polled_at = 0.0
            return []
        now = self._clock()
        self.cost.turned(now - (self._polled_at or next(iter(self._loading.values())).began_at))
        self._polled_at = now
        ended: list[tuple[Sequence, int]] = []
        for loaded in self.tier.poll():
            load = self._loading.pop(id(loaded.lookup))
            self.cost.loaded(len(load.block_ids), now - load.began_at)
            self._coming.difference_update(load.names)
            self._pool.release(load.block_ids)
            ended.append((load.sequence, loaded.num_blocks))
        return ended

    def _save(self) -> None:
        saved, given_up = self._cache.take_for_tier()
        if saved:
            self.tier.save([name for name, _ in saved], [block_id for _, block_id in saved])
        if given_up:
            self.tier.guard(given_up)
        for name in self.tier.take_dropped():
            self._cache.forget_kept(name)

    def _names(self, sequence: Sequence, num_known: int, block_size: int) -> list[bytes]:
        if not sequence.reuse_prefix or sequence.num_restores > sequence.num_preemptions:
            return []
        return sequence.block_hashes[num_known : (len(sequence.token_ids) - 1) // block_size]
