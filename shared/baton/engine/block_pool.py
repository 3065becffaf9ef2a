"""The pool of KV blocks: who holds which block, and which one goes next.

Every block is in exactly one of three conditions. With references it is *held*. Without, it is *cached* while the
prefix cache knows its content (kept in order of last use, and given up when space is needed), else *free*. So
free + cached + held = total, always. Block 0 is scratch, where padding tokens write; it is never handed out and
not counted. The pool knows neither tokens nor hashes: the prefix cache marks blocks, and is told of evictions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from baton.errors import OutOfBlocks


class BlockPool:
    """Hand out blocks 1 to num_blocks - 1, count their references, evict the least recently used."""

    __slots__ = ("_cached", "_free", "_marked", "_refs", "num_total", "on_evict")

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"num_blocks={num_blocks}: block 0 is scratch, so a pool needs at least 2")
        self.num_total = num_blocks - 1
        self._refs = [0] * num_blocks
        self._marked = bytearray(num_blocks)
        self._free = list(range(num_blocks - 1, 0, -1))  # a stack: block 1 is taken first
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self.on_evict: Callable[[int], None] = _ignore
        """Called with a marked block just before it is given up for other content."""

    @property
    def num_free(self) -> int:
        """Blocks without references and without known content."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks without references whose content the prefix cache knows."""
        return len(self._cached)

    @property
    def num_held(self) -> int:
        """Blocks with references."""
        return self.num_total - len(self._free) - len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` could hand out now."""
        return len(self._free) + len(self._cached)

    def num_unreferenced(self, block_ids: Iterable[int]) -> int:
        """Count the blocks among these that nobody holds: those that `share` takes from the available."""
        return sum(not self._refs[block_id] for block_id in block_ids)

    def allocate(self, num_blocks: int) -> list[int]:
        """Take blocks for new content, one reference each: free ones first, then the least recently used.

        Raises:
            OutOfBlocks: fewer are available; nothing was taken.
        """
        free = self._free
        missing = num_blocks - len(free)
        if missing > 0:
            if missing > len(self._cached):
                raise OutOfBlocks(f"{num_blocks} blocks wanted, {self.num_available} of {self.num_total} available")
            self._evict(missing)
        if num_blocks == 0:
            return []
        block_ids = free[-num_blocks:]
        del free[-num_blocks:]
        block_ids.reverse()
        refs = self._refs
        for block_id in block_ids:
            refs[block_id] = 1
        return block_ids

    def share(self, block_ids: Iterable[int]) -> None:
        """Add a reference to each of these cached or held blocks."""
        refs, cached = self._refs, self._cached
        for block_id in block_ids:
            if not refs[block_id]:
                del cached[block_id]  # KeyError: a free block has no content to share
            refs[block_id] += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """Drop one reference to each of these blocks, last one first.

        So the end of a chain is older than its beginning, and is evicted before it.
        """
        refs, marked = self._refs, self._marked
        for block_id in reversed(block_ids):
            left = refs[block_id] - 1
            assert left >= 0, f"block {block_id} released more often than held"
            refs[block_id] = left
            if left:
                continue
            if marked[block_id]:
                self._cached[block_id] = None
            else:
                self._free.append(block_id)

    def mark(self, block_id: int) -> None:
        """Note that the prefix cache knows this held block's content."""
        assert self._refs[block_id] > 0, f"block {block_id} is not held"
        self._marked[block_id] = 1

    def unmark(self, block_id: int) -> None:
        """Note that the prefix cache has forgotten the block; without references it becomes free."""
        self._marked[block_id] = 0
        if not self._refs[block_id]:
            del self._cached[block_id]
            self._free.append(block_id)

    def verify(self) -> None:
        """Count everything anew. For tests and idle moments: the work grows with the pool.

        Raises:
            AssertionError: a block is lost, or in two conditions at once.
        """
        free, cached = set(self._free), set(self._cached)
        held = {block_id for block_id in range(1, self.num_total + 1) if self._refs[block_id] > 0}
        assert len(free) == len(self._free), "a block is free twice"
        assert len(free | cached | held) == len(free) + len(cached) + len(held), "a block in two conditions"
        assert len(free) + len(cached) + len(held) == self.num_total, "a block is lost"
        assert min(self._refs) >= 0, "a negative count"
        assert 0 not in free | cached | held, "scratch was handed out"
        assert all(self._marked[block_id] for block_id in cached), "a cached block nobody knows"
        assert not any(self._marked[block_id] for block_id in free), "a free block somebody knows"

    def _evict(self, num_blocks: int) -> None:
        for _ in range(num_blocks):
            block_id, _none = self._cached.popitem(last=False)
            self.on_evict(block_id)
            self._marked[block_id] = 0
            self._free.append(block_id)


def _ignore(block_id: int) -> None:
    """Stand in for a prefix cache where there is none."""
