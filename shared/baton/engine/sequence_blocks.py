"""Which blocks a sequence's tokens lie in: shared, taken, made findable, given back.

What stands between scheduler and pool. A block table only grows at its end, until all of it is released. A block is
made findable once its tokens are all computed and known, and from then on nobody writes in it.
"""

from __future__ import annotations

from itertools import islice

from baton.engine.block_pool import BlockPool
from baton.engine.prefix_cache import PrefixCache
from baton.engine.sequence import Sequence


class SequenceBlocks:
    """Every change of a sequence's block table. `cache` is None where prefixes are not shared."""

    __slots__ = ("_landing", "block_size", "cache", "pool")

    def __init__(self, pool: BlockPool, cache: PrefixCache | None, block_size: int) -> None:
        self.pool = pool
        self.cache = cache
        self.block_size = block_size
        self._landing: set[bytes] = set()

    def num_blocks(self, num_tokens: int) -> int:
        """Give how many blocks so many tokens take."""
        return -(-num_tokens // self.block_size)

    def num_missing(self, sequence: Sequence) -> int:
        """Give how many blocks a sequence's known tokens lack."""
        return max(0, self.num_blocks(len(sequence.token_ids)) - len(sequence.block_ids))

    # -- sharing ------------------------------------------------------------------------------------------

    def hash(self, sequence: Sequence) -> None:
        """Hash the full blocks of known tokens, as far as that has not been done."""
        if self.cache is not None:
            sequence.extend_hashes(self.block_size)

    def known(self, sequence: Sequence) -> list[int]:
        """Find the blocks at the beginning of a sequence that has none, leaving it a token to compute."""
        if self.cache is None or sequence.block_ids or not sequence.reuse_prefix:
            return []
        self.hash(sequence)
        num_full = (len(sequence.token_ids) - 1) // self.block_size
        return self.cache.lookup(islice(sequence.block_hashes, num_full))

    def share(self, sequence: Sequence, known: list[int]) -> None:
        """Begin a sequence's table with blocks from the prefix cache; their tokens are computed."""
        assert not sequence.block_ids, sequence
        self.pool.share(known)
        sequence.block_ids = known
        sequence.num_indexed = len(known)
        sequence.num_computed = len(known) * self.block_size
        if self.cache is not None and not sequence.num_preemptions:
            sequence.num_cached = sequence.num_computed
            self.cache.num_queries += len(sequence.token_ids)
            self.cache.num_hits += sequence.num_cached

    def index(self, sequence: Sequence, num_computed: int) -> None:
        """Make the blocks findable whose tokens are all computed and known."""
        num_full = min(num_computed, len(sequence.token_ids)) // self.block_size
        if num_full <= sequence.num_indexed:
            return
        if self.cache is not None:
            self.hash(sequence)
            for i in range(sequence.num_indexed, num_full):
                self.cache.insert(sequence.block_hashes[i], sequence.block_ids[i])
        sequence.num_indexed = num_full

    # -- taking and giving back ---------------------------------------------------------------------------

    def grow(self, sequence: Sequence, num_tokens: int) -> int:
        """Take blocks until so many tokens fit, as far as there are any; give how many fit, at most that."""
        missing = self.num_blocks(num_tokens) - len(sequence.block_ids)
        if missing > 0:
            sequence.block_ids += self.pool.allocate(min(missing, self.pool.num_available))
        return min(num_tokens, len(sequence.block_ids) * self.block_size)

    def release(self, sequence: Sequence) -> None:
        """Give back all blocks of a sequence, and with them what was computed."""
        self.pool.release(sequence.block_ids)
        sequence.block_ids = []
        sequence.num_computed = sequence.num_indexed = 0

    # -- prefixes on their way ----------------------------------------------------------------------------

    def launch(self, sequence: Sequence, start: int, num_new: int) -> None:
        """Note that a launched step computes these tokens."""
        if self.cache is not None:
            self._landing.update(self._full(sequence, start, num_new))

    def land(self, sequence: Sequence, start: int, num_new: int) -> None:
        """Note that the step has ended."""
        self._landing.difference_update(self._full(sequence, start, num_new))

    def land_all(self) -> None:
        """Note that no step is launched."""
        self._landing.clear()

    def is_landing(self, sequence: Sequence, num_known: int) -> bool:
        """Whether launched steps compute at least half of what a sequence lacks, so that it had better wait.

        Else equal prompts that come together, as the choices of one request do, would all be computed.
        """
        if not self._landing or sequence.block_ids or not sequence.reuse_prefix:
            return False
        num_landing = 0
        for block_hash in islice(sequence.block_hashes, num_known, None):
            if block_hash not in self._landing:
                break
            num_landing += self.block_size
        return 2 * num_landing >= len(sequence.token_ids) - num_known * self.block_size

    def _full(self, sequence: Sequence, start: int, num_new: int) -> list[bytes]:
        """Give the hashes of the blocks that these tokens fill."""
        return sequence.block_hashes[start // self.block_size : (start + num_new) // self.block_size]
