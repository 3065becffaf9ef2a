"""Prefixes on their way: blocks that launched steps compute, which nobody can share yet and others may wait for."""

from __future__ import annotations

from itertools import islice

from baton.engine.sequence import Sequence


class LandingBlocks:
    """The hashes of full blocks in launched steps."""

    __slots__ = ("_block_size", "_hashes")

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._hashes: set[bytes] = set()

    def launch(self, sequence: Sequence, start: int, num_new: int) -> None:
        """Note that a launched step computes these tokens."""
        self._hashes.update(self._full(sequence, start, num_new))

    def land(self, sequence: Sequence, start: int, num_new: int) -> None:
        """Note that the step has ended."""
        self._hashes.difference_update(self._full(sequence, start, num_new))

    def clear(self) -> None:
        """Note that no step is launched."""
        self._hashes.clear()

    def has_half_of(self, sequence: Sequence, num_known: int) -> bool:
        """Whether launched steps compute at least half of what a sequence lacks, so that it had better wait.

        Else equal prompts that come together, as the choices of one request do, would all be computed.
        """
        if not self._hashes or sequence.num_slots or not sequence.reuse_prefix:
            return False
        num_landing = 0
        for block_hash in islice(sequence.block_hashes, num_known, None):
            if block_hash not in self._hashes:
                break
            num_landing += self._block_size
        return 2 * num_landing >= len(sequence.token_ids) - num_known * self._block_size

    def _full(self, sequence: Sequence, start: int, num_new: int) -> list[bytes]:
        """Hashes of the blocks that these tokens fill."""
        return sequence.block_hashes[start // self._block_size : (start + num_new) // self._block_size]
