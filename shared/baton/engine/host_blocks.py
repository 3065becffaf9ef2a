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
from enum import Enum, auto

from baton.block_hash import block_name
from baton.engine.block_pool import BlockPool
from baton.engine.prefix_cache import PrefixCache
from baton.engine.reload_cost import ReloadCost
from baton.engine.sequence import Sequence
from baton.engine.windows import Reach
from baton.host_tier import HostTier, Lookup


class Answer(Enum):
    """What a sequence hears, if not `Found`."""

    NOTHING = auto()
    """There is nothing, or it is sooner computed."""
    LATER = auto()
    """The tier has not said yet, or another sequence has it coming already."""


@dataclass(frozen=True, slots=True)
class Found:
    """What may come back."""

    num_blocks: int
    """Blocks of the sequence's tokens up to its end, those on the device included."""
    num_names: int
    """Places that it takes, over all KV groups."""


@dataclass(slots=True, eq=False)
class _Asked:
    lookup: Lookup
    names: list[bytes]
    num_known: int
    """Blocks on the device when it was asked; the lookup's come after them."""
    num_blocks: int | None
    """What all of the names bring; None: each brings a block of tokens more."""


@dataclass(slots=True, eq=False)
class _Load:
    sequence: Sequence
    lookup: Lookup
    names: list[bytes]
    block_ids: list[int]
    """Each with a reference of ours."""
    num_blocks: int
    """Of tokens, up to the end of what comes."""
    began_at: float = 0.0


class HostBlocks:
    """What an engine has to do with its tier."""

    def __init__(
        self,
        tier: HostTier,
        pool: BlockPool,
        cache: PrefixCache,
        cost: ReloadCost,
        reach: Reach,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.tier = tier
        self.cost = cost
        self._pool = pool
        self._cache = cache
        self._reach = reach
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

    def find(self, sequence: Sequence, num_known: int) -> Found | Answer:
        """Say what to load for a sequence after the blocks that the device has. After `Found` comes `begin` or `forget`.

        Where layers see a window, the first group is asked for first, which says how far the others' windows are of use.
        """
        asked = self._asked.get(sequence)
        if asked is not None and asked.num_known != num_known and asked.lookup.num_blocks is not None:
            self.forget(sequence)  # others have changed what the device has meanwhile
            asked = None
        if asked is None:
            names = self._names(sequence, num_known)
            if not names:
                return Answer.NOTHING
            if names[0] in self._coming:
                return Answer.LATER
            self._save()  # what this plan has driven out may be what is asked for
            asked = self._ask(sequence, names, num_known)
        if self._reach.windowed and asked.num_blocks is None and asked.lookup.num_blocks:
            asked = self._ask_windows(sequence, num_known + asked.lookup.num_blocks, num_known)
        num_names = asked.lookup.num_blocks
        if num_names is None:
            return Answer.LATER
        num_blocks = num_known + num_names if asked.num_blocks is None else asked.num_blocks
        is_whole = asked.num_blocks is None or num_names == len(asked.names)
        if is_whole and self.cost.is_worth(num_names, num_blocks - num_known):
            return Found(num_blocks, num_names)
        self.forget(sequence)
        return Answer.NOTHING

    def begin(self, sequence: Sequence, block_ids: list[int]) -> None:
        """Have the blocks that were found come into these places, with the next `flush`."""
        asked = self._asked.pop(sequence)
        names = asked.names[: len(block_ids)]
        num_blocks = asked.num_known + len(names) if asked.num_blocks is None else asked.num_blocks
        self._pool.share(block_ids)
        self._coming.update(names)
        sequence.num_restores = sequence.num_preemptions + 1
        self._begun.append(_Load(sequence, asked.lookup, names, block_ids, num_blocks))

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

    def poll(self) -> list[tuple[Sequence, int, int]]:
        """Take the sequences whose loads have ended, how many of their blocks are good, and of how many tokens all were.

        They may have ended meanwhile; then their blocks come back here.
        """
        now = self._clock() if self._loading else 0.0
        if self._loading:
            self.cost.turned(now - (self._polled_at or next(iter(self._loading.values())).began_at))
        self._polled_at = now
        ended: list[tuple[Sequence, int, int]] = []
        for loaded in self.tier.poll() if self.is_busy else ():
            load = self._loading.pop(id(loaded.lookup))
            self.cost.loaded(len(load.block_ids), now - load.began_at)
            self._coming.difference_update(load.names)
            self._pool.release(load.block_ids)
            ended.append((load.sequence, loaded.num_blocks, load.num_blocks * self._reach.block_size))
        return ended

    def clear(self) -> None:
        """Have the tier forget what nobody reads."""
        self.tier.clear()
        for name in self.tier.take_dropped():
            self._cache.forget_kept(name)

    def _save(self) -> None:
        saved, given_up = self._cache.take_for_tier()
        if saved:
            self.tier.save([name for name, _ in saved], [block_id for _, block_id in saved])
        if given_up:
            self.tier.guard(given_up)
        for name in self.tier.take_dropped():
            self._cache.forget_kept(name)

    def _names(self, sequence: Sequence, num_known: int) -> list[bytes]:
        """Name what the first group may lack; a token is left to compute."""
        if not sequence.reuse_prefix or sequence.num_restores > sequence.num_preemptions:
            return []
        return sequence.block_hashes[num_known : (len(sequence.token_ids) - 1) // self._reach.block_size]

    def _ask(self, sequence: Sequence, names: list[bytes], num_known: int, num_blocks: int | None = None) -> _Asked:
        asked = self._asked[sequence] = _Asked(self.tier.look_up(names), names, num_known, num_blocks)
        return asked

    def _ask_windows(self, sequence: Sequence, num_blocks: int, num_known: int) -> _Asked:
        """Ask for what all groups read once `num_blocks` are computed."""
        self.forget(sequence)
        wanted = self._reach.wanted(num_known, num_blocks, num_blocks)
        names = [block_name(sequence.block_hashes[at], group) for at, group in wanted]
        return self._ask(sequence, names, num_known, num_blocks)
