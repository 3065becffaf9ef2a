"""Which blocks a sequence's tokens lie in: shared, taken, made findable, given back.

What stands between scheduler and pool. A sequence has a block table for each KV group; they grow together, at their ends,
until all is released. A block is made findable once its tokens are all computed and known, and from then on nobody writes
in it. One that its group's window has passed is given back, and stays findable until it is evicted.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice, zip_longest

from baton.block_hash import block_name
from baton.engine.block_pool import BlockPool
from baton.engine.prefix_cache import PrefixCache
from baton.engine.sequence import Sequence
from baton.engine.windows import Reach


class SequenceBlocks:
    """Every change of a sequence's block tables. `cache` is None where prefixes are not shared."""

    __slots__ = ("_windowed", "block_size", "cache", "num_groups", "pool", "reach")

    def __init__(self, pool: BlockPool, cache: PrefixCache | None, reach: Reach) -> None:
        self.pool = pool
        self.cache = cache
        self.reach = reach
        self.block_size = reach.block_size
        self.num_groups = reach.num_groups
        self._windowed = reach.windowed

    def num_missing(self, sequence: Sequence) -> int:
        """Count the blocks that a sequence still needs for its known tokens."""
        return max(0, self.reach.num_held(len(sequence.token_ids)) - len(self._held(sequence)))

    def _held(self, sequence: Sequence) -> list[int]:
        """List a sequence's blocks, those of earlier tokens first."""
        if self.reach.windows == (None,) and sequence.tables:
            return sequence.tables[0]
        return [block_id for row in zip_longest(*sequence.tables, fillvalue=0) for block_id in row if block_id]

    def num_needed(self, sequence: Sequence, known: list[list[int]]) -> int:
        """Count the available blocks that a waiting sequence's known tokens take, where it can share `known`."""
        shared = [block_id for table in known for block_id in table if block_id]
        return max(0, self.num_missing(sequence) - len(shared)) + self.pool.num_unreferenced(shared)

    # -- sharing ------------------------------------------------------------------------------------------

    def hash(self, sequence: Sequence) -> None:
        """Hash the full blocks of known tokens, as far as that has not been done."""
        if self.cache is not None:
            sequence.extend_hashes(self.block_size)

    def known(self, sequence: Sequence) -> list[list[int]]:
        """Find the longest beginning of a sequence whose KV is there in all groups; a token is left to compute.

        Returns the tables that it would have; none where the sequence has blocks already.
        """
        if self.cache is None or sequence.num_slots or not sequence.reuse_prefix:
            return []
        self.hash(sequence)
        hashes, cache, reach = sequence.block_hashes, self.cache, self.reach
        num_blocks = (len(sequence.token_ids) - 1) // self.block_size
        tables: list[list[int]] = []
        for group, window in enumerate(reach.windows):
            if window is None:
                names = islice(hashes, num_blocks)
                tables.append(cache.lookup(block_name(each, group) for each in names) if group else cache.lookup(names))
                num_blocks = len(tables[-1])
        if not self._windowed:
            return [table[:num_blocks] for table in tables] if num_blocks else []
        while (gap := self._last_gap(hashes, num_blocks)) is not None:
            num_blocks = gap
        if not num_blocks:
            return []
        firsts = [reach.first_block(group, num_blocks) for group in range(self.num_groups)]
        own_names = [
            [block_name(each, group) for each in hashes[first:num_blocks]] for group, first in enumerate(firsts)
        ]
        return [[0] * first + cache.lookup(own) for first, own in zip(firsts, own_names, strict=True)]

    def _last_gap(self, hashes: list[bytes], num_blocks: int) -> int | None:
        """Find the last block within the windows before `num_blocks` that is not known."""
        assert self.cache is not None
        gaps: list[int] = []
        for group in self._windowed:
            within = reversed(range(self.reach.first_block(group, num_blocks), num_blocks))
            gaps += islice((at for at in within if block_name(hashes[at], group) not in self.cache), 1)
        return max(gaps, default=None)

    def share(self, sequence: Sequence, known: list[list[int]]) -> None:
        """Begin a sequence's tables with blocks from the prefix cache; their tokens are computed."""
        assert not sequence.num_slots, sequence
        sequence.tables = known or [[] for _ in range(self.num_groups)]
        num_blocks = len(sequence.tables[0])
        sequence.num_passed = [self.reach.first_block(group, num_blocks) for group in range(self.num_groups)]
        self.pool.share(self._held(sequence))
        self._indexed(sequence, num_blocks)
        sequence.num_computed = sequence.num_slots = num_blocks * self.block_size
        if self.cache is not None and not sequence.num_preemptions:
            sequence.num_cached = sequence.num_computed
            self.cache.num_queries += len(sequence.token_ids)
            self.cache.num_hits += sequence.num_cached

    def index(self, sequence: Sequence, num_computed: int) -> None:
        """Make the blocks findable whose tokens are all computed and known; give back those that windows have passed."""
        num_full = min(num_computed, len(sequence.token_ids)) // self.block_size
        if num_full <= sequence.num_indexed:
            return
        if self.cache is not None:
            self.hash(sequence)
            for group, table in enumerate(sequence.tables):
                for at in range(sequence.num_indexed, num_full):
                    if table[at]:
                        self.cache.insert(block_name(sequence.block_hashes[at], group), table[at], is_told=not group)
        self._indexed(sequence, num_full)
        if self._windowed:
            self._pass(sequence, num_full)

    def _pass(self, sequence: Sequence, num_blocks: int) -> None:
        """Release the blocks that no later step reads once `num_blocks` are computed."""
        for group in self._windowed:
            table, passed = sequence.tables[group], sequence.num_passed[group]
            first = self.reach.first_block(group, num_blocks)
            if first > passed:
                self.pool.release([block_id for block_id in table[passed:first] if block_id])
                table[passed:first] = [0] * (first - passed)
                sequence.num_passed[group] = first

    def _indexed(self, sequence: Sequence, num_blocks: int) -> None:
        sequence.num_indexed = num_blocks
        sequence.next_full = (num_blocks + 1) * self.block_size

    # -- taking and giving back ---------------------------------------------------------------------------

    def grow(self, sequence: Sequence, num_tokens: int) -> int:
        """Take blocks until `num_tokens` fit, as far as there are any; return how many fit, at most that."""
        num_groups = self.num_groups
        missing = self.reach.num_blocks(num_tokens) - len(sequence.tables[0])
        if missing > 0:
            block_ids = self.pool.allocate(min(missing, self.pool.num_available // num_groups) * num_groups)
            for group, table in enumerate(sequence.tables):
                table += block_ids[group::num_groups]
            sequence.num_slots = len(sequence.tables[0]) * self.block_size
        return min(num_tokens, sequence.num_slots)

    def grow_by_one(self, sequence: Sequence) -> None:
        """Take the next block of each table, for which the caller has made room: `grow` took a sixth of a plan's time."""
        for table in sequence.tables:
            table += self.pool.allocate(1)
        sequence.num_slots += self.block_size

    def release(self, sequence: Sequence) -> None:
        """Release all blocks of a sequence, and with them what was computed."""
        self.pool.release(self._held(sequence))
        sequence.tables = []
        self._indexed(sequence, 0)
        sequence.num_computed = sequence.num_slots = 0

    # -- blocks from elsewhere and for elsewhere ----------------------------------------------------------

    def expect(self, sequence: Sequence) -> tuple[int, list[bytes]]:
        """Begin a sequence whose KV comes from elsewhere: share what is known, list the names of what is missing.

        Returns them with their place in the list of all that the prompt's end needs: of full blocks, then of the tail.
        """
        self.share(sequence, self.known(sequence))
        sequence.extend_hashes(self.block_size)
        first, last = len(sequence.tables[0]), len(sequence.block_hashes)
        for group in self._windowed:
            table = sequence.tables[group]
            table += [0] * (self.reach.first_block(group, last) - len(table))
        names = self._names(sequence, self.reach.wanted(first, last, last))
        return self.reach.num_wanted(0, last) - len(names), names + self._tail_names(sequence, len(sequence.token_ids))

    def take_places(self, sequence: Sequence, num_places: int) -> list[int]:
        """Take blocks for the next of the names that `expect` listed, in their order."""
        last = self.reach.num_blocks(len(sequence.token_ids))
        left = sum(last - len(table) for table in sequence.tables)
        block_ids = self.pool.allocate(min(num_places, left))
        for block_id in block_ids:
            min(sequence.tables, key=len).append(block_id)
        return block_ids

    def expect_back(self, sequence: Sequence, known: list[list[int]], num_blocks: int, num_names: int) -> list[int]:
        """Begin a sequence whose first blocks up to `num_blocks` come back: share what is known, take places for the rest."""
        self.share(sequence, known)
        for group in self._windowed:
            table = sequence.tables[group]
            table += [0] * (self.reach.first_block(group, num_blocks) - len(table))
        return self.take_places(sequence, num_names)

    def arrived(self, sequence: Sequence, num_names: int, num_tokens: int) -> int:
        """Note how many of the names of the first `num_tokens` have arrived; return how many tokens that makes computed.

        Blocks that are of no use without others are given back.
        """
        known, last = sequence.num_slots // self.block_size, num_tokens // self.block_size
        num_tails = self.num_groups if num_tokens % self.block_size else 0
        whole = self.reach.num_wanted(known, last)
        assert num_names <= whole + num_tails
        num_full = last if num_names >= whole else self._usable(known, last, num_names)
        num_blocks = self.reach.num_blocks(num_tokens) if num_names == whole + num_tails else num_full
        for table in sequence.tables:
            self.pool.release([block_id for block_id in table[num_blocks:] if block_id])
            del table[num_blocks:]
        self._pass(sequence, num_full)
        sequence.num_slots = num_blocks * self.block_size
        return min(num_tokens, sequence.num_slots)

    def _usable(self, known: int, last: int, num_names: int) -> int:
        """Find how many leading blocks are of use if the last names are missing."""
        if any(self.reach.first_block(group, last) > known for group in self._windowed):
            return known  # what a shorter beginning needs was not asked for
        return known + num_names // self.num_groups

    def complete(self, sequence: Sequence, first: int, num_tokens: int) -> tuple[list[int], list[bytes]]:
        """List the computed blocks from block `first` on, and their names, as a receiver of `num_tokens` expects them.

        The tail comes with the token behind it: then nobody writes there any more.
        """
        sequence.extend_hashes(self.block_size)  # with prefix caching off, nobody else has
        last = num_tokens // self.block_size
        wanted = list(self.reach.wanted(first, min(last, sequence.num_indexed), last))
        block_ids, names = [sequence.tables[group][at] for at, group in wanted], self._names(sequence, wanted)
        if first <= last and len(sequence.token_ids) > num_tokens and (tail := self._tail_names(sequence, num_tokens)):
            block_ids, names = block_ids + [table[last] for table in sequence.tables], names + tail
        return block_ids, names

    def num_complete(self, sequence: Sequence, num_tokens: int) -> int:
        """Count the blocks of tokens up to which `complete` lists now."""
        if len(sequence.token_ids) > num_tokens:
            return self.reach.num_blocks(num_tokens)
        return min(num_tokens // self.block_size, sequence.num_indexed)

    def _names(self, sequence: Sequence, wanted: Iterable[tuple[int, int]]) -> list[bytes]:
        """Name full blocks, each given as (block, group)."""
        return [block_name(sequence.block_hashes[at], group) for at, group in wanted]

    def _tail_names(self, sequence: Sequence, num_tokens: int) -> list[bytes]:
        """Name the blocks of the last of `num_tokens`, one a group; none where they fill theirs."""
        if not num_tokens % self.block_size:
            return []
        tail = sequence.hash_tail(num_tokens, self.block_size)
        return [block_name(tail, group) for group in range(self.num_groups)]
