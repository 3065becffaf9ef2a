"""What an engine asks of host memory behind its device's KV blocks, and what it promises in return. No torch.

Two kinds of tier have these methods: `--swap-space`, which is one worker's own, and `baton kvstore`, which workers of a
host share. The engine knows no more of them than this. All calls come from the engine's thread, and none waits: not for a
device, not for a process, not for a disk. A tier that has something to do for others has a thread of its own.

    a block is computed or evicted ── save ──> copied into a slot       no answer: what is not saved is computed again
    a sequence is to be admitted ──── look_up ──> how many of its next blocks are there; maybe later
                                      load ──> copied back, summed, compared ──> poll: `Loaded`, how many are good

Names are those of the prefix cache: chained keyed hashes over tokens, tenant salt, adapter, dtype and layout. Equal names,
equal bytes; so a tier may keep what it has, and nobody finds another tenant's blocks.

Who owns a block meanwhile
- saving: nobody but the engine. `save` starts its copies at once, or declines. The block may be given to others right
  away; before anything that could write in it is started, the engine calls `guard`, which puts the copy first.
- loading: from `load` to its `Loaded` the engine keeps references to the blocks, whatever becomes of the sequence.

Who owns a slot: the tier. One that is copied from or into is not given away until that copy has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


class Lookup(Protocol):
    """An open question: how many of some names, from the first on, the tier has. Ends with `load` or `drop`.

    The blocks it counts stay in the tier until then.
    """

    @property
    def num_blocks(self) -> int | None:
        """None: not known yet. The tier bounds that time itself: an answer that does not come is 0."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The end of a load: every one has one."""

    lookup: Lookup
    num_blocks: int
    """How many of the blocks, from the first on, have the bytes that were saved; the others are to be computed."""


@dataclass(frozen=True, slots=True)
class TierCounts:
    """Of a tier, in blocks; the last three since the start."""

    num_slots: int = 0
    num_used: int = 0
    num_saved: int = 0
    num_loaded: int = 0
    """Came back good."""
    num_damaged: int = 0
    """Came back with other bytes than were saved, and were not used."""


class HostTier(Protocol):
    """Blocks of one layout in host memory, by name."""

    @property
    def saves(self) -> Literal["evicted", "computed"]:
        """Which blocks the engine saves: those that it has no more room for, or all that are full."""

    @property
    def is_busy(self) -> bool:
        """Whether a lookup or a load is open, so that `poll` is to be asked again soon."""

    def save(self, names: Sequence[bytes], block_ids: Sequence[int]) -> None:
        """Start copying these blocks out; those that are there already, or that there is no slot for, are left out."""

    def guard(self, block_ids: Sequence[int]) -> None:
        """Put what still copies from these blocks before all that the engine starts from here on."""

    def look_up(self, names: Sequence[bytes]) -> Lookup:
        """Ask how many of these, from the first on, are there."""

    def drop(self, lookup: Lookup) -> None:
        """End an open question without loading."""

    def load(self, lookup: Lookup, block_ids: Sequence[int]) -> None:
        """Start copying the first blocks of an answered lookup, at most as many as it counted, into these.

        Ends with `Loaded`. The blocks are free of copies by `save`: the engine has called `guard`.
        """

    def poll(self) -> list[Loaded]:
        """Take what has ended since the last call."""

    def take_dropped(self) -> list[bytes]:
        """Take the names that the tier has given up, or has not taken, since the last call: whom the engine told of them
        shall know. Empty for a tier that tells others itself."""

    def clear(self) -> None:
        """Forget all blocks that no lookup or load is open for; a store forgets those of this layout, for all of its workers."""

    def counts(self) -> TierCounts:
        """What it holds and has done, for metrics."""

    def close(self) -> None:
        """Wait for the copies that run, and let go of the memory."""


# -- the copies, which both kinds of tier have in common ------------------------------------------------------------


class Copy(Protocol):
    """Blocks on their way between device and slots."""

    def is_done(self) -> bool:
        """Whether nothing is read or written by it any more."""

    def sums(self) -> list[bytes]:
        """Give, once it is done, the sums of the device's blocks, 16 bytes each: as they were read, or have arrived.

        A block is good if it arrives with the sum with which it was read. Sums of a CPU and of a GPU are of two kinds.
        """


class SlotCopies(Protocol):
    """Host memory divided into slots of one block each, and copies between them and the device's blocks.

    `baton.engine.slot_copies` makes one for a CPU (copies are done when asked for) and for CUDA (on streams of their own).
    """

    @property
    def num_slots(self) -> int:
        """Slots that may be used now, from 0 on. Rises after the start while memory is pinned, piece by piece."""

    def save(self, block_ids: Sequence[int], slots: Sequence[int]) -> Copy:
        """Start copying blocks, all full and computed, into slots."""

    def load(self, slots: Sequence[int], block_ids: Sequence[int]) -> Copy:
        """Start copying slots into blocks, after all saves that were started into the one or from the other; then they are
        summed on the device."""

    def guard(self, block_ids: Sequence[int]) -> None:
        """As `HostTier.guard`."""

    def close(self) -> None:
        """Wait for the copies that run, and let go of the memory."""
