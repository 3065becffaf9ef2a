"""Which blocks of a sequence a group of layers still reads: pure arithmetic on the groups' windows.

The one rule: a sequence with k computed blocks reads block `first_block(k)` and those behind it from now on, also when
its last token is computed again. What a prefix hit needs, what a transfer carries and what is given back all follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reach:
    """The windows of a model's KV groups, in blocks. `windows` has one entry a group, in tokens; None: sees all."""

    block_size: int
    windows: tuple[int | None, ...] = (None,)
    largest_chunk: int = 1
    """Most tokens of a sequence in one step."""

    @property
    def num_groups(self) -> int:
        """Blocks that a sequence needs for one block of tokens."""
        return len(self.windows)

    @property
    def windowed(self) -> list[int]:
        """Groups with a window."""
        return [group for group, window in enumerate(self.windows) if window is not None]

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks of tokens in `num_tokens`, the last maybe not full."""
        return -(-num_tokens // self.block_size)

    def first_block(self, group: int, num_blocks: int) -> int:
        """First block that a group reads once `num_blocks` are computed."""
        window = self.windows[group]
        return 0 if window is None else max(0, num_blocks * self.block_size - window) // self.block_size

    def num_held(self, num_tokens: int) -> int:
        """Most blocks, over all groups, that a sequence of `num_tokens` needs at a time to run in whole steps."""
        num_blocks = self.num_blocks(num_tokens)
        return sum(
            num_blocks if window is None else min(num_blocks, self.num_blocks(window + self.largest_chunk) + 2)
            for window in self.windows
        )

    def wanted(self, first: int, stop: int, last: int) -> Iterator[tuple[int, int]]:
        """List (block, group) of what a sequence with `last` computed blocks reads, of blocks `first` to `stop`.

        Block after block, and in each group after group: the order in which KV travels.
        """
        firsts = [self.first_block(group, last) for group in range(self.num_groups)]
        for at in range(first, stop):
            for group, begin in enumerate(firsts):
                if at >= begin:
                    yield at, group

    def num_wanted(self, first: int, last: int) -> int:
        """Count what `wanted` lists from block `first` to the last."""
        return sum(max(0, last - max(first, self.first_block(group, last))) for group in range(self.num_groups))
