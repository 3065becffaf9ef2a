"""Whether blocks come back from the host sooner than they are computed again: a rule with three learned numbers.

    load     one turn of the loop, in which the end is seen, and the bytes over the link
    compute  the tokens over the rate at which prompts' chunks are computed here, decodes beside them included

All three are measured here, under today's load: a busy device computes slowly and makes loading worthwhile earlier. What has
not been measured yet is taken as fast for the link and as slow for computing, so that it is tried, and thereby measured.
"""

from __future__ import annotations

FIRST_RATE = 8e9
"""Bytes a second of a link that nothing is known of: a slow one of today's."""
_KEPT = 0.8
"""Of what is known, with each new measurement: some five back."""


class ReloadCost:
    """Learn, and judge."""

    def __init__(self, *, block_nbytes: int, block_size: int) -> None:
        self._block_nbytes = block_nbytes
        self._block_size = block_size
        self._link_rate = FIRST_RATE
        self._turn_s = 0.0
        self._computed_tokens = self._computed_s = 0.0

    def is_worth(self, num_blocks: int, num_computed: int | None = None) -> bool:
        """Whether to load so many blocks rather than compute so many blocks of tokens; None: as many."""
        return num_blocks > 0 and self.load_s(num_blocks) < self.compute_s(num_computed or num_blocks)

    def load_s(self, num_blocks: int) -> float:
        """Predict the time until so many blocks are there."""
        return self._turn_s + num_blocks * self._block_nbytes / self._link_rate

    def compute_s(self, num_blocks: int) -> float:
        """Predict the time to compute so many blocks of tokens; without end while nothing is known."""
        if not self._computed_tokens:
            return float("inf")
        return num_blocks * self._block_size * self._computed_s / self._computed_tokens

    def loaded(self, num_blocks: int, seconds: float) -> None:
        """Take in how long a load took until it was seen to have ended.

        A short one says more of the loop than of the link: only what makes the link look faster is believed of it.
        """
        rate = num_blocks * self._block_nbytes / max(seconds, 1e-6)
        if rate > self._link_rate:
            self._link_rate = rate
        elif seconds > 3 * self._turn_s:
            self._link_rate = _KEPT * self._link_rate + (1 - _KEPT) * rate

    def turned(self, seconds: float) -> None:
        """Take in the time between two looks at what has ended."""
        self._turn_s = _KEPT * self._turn_s + (1 - _KEPT) * seconds if self._turn_s else seconds

    def computed(self, num_tokens: int, seconds: float) -> None:
        """Take in a step, with how many tokens of prompts it computed."""
        if not num_tokens:
            return
        self._computed_tokens = _KEPT * self._computed_tokens + num_tokens
        self._computed_s = _KEPT * self._computed_s + seconds
