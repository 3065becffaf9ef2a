"""Links: what is known of transfers from one worker to another, learned from those that arrived."""

from __future__ import annotations

import math
from dataclasses import dataclass

HALF_LIFE_S = 15.0
"""Of what was learned; a link that once took 12 s is as good as a new one after three minutes."""
_TAIL = 1024
"""Tokens of a prompt's last chunk, whose KV begins to travel when the prefill ends."""
_KEEP = 0.8
"""Weight of the transfers before: the last five or so count."""


def kept(age_s: float) -> float:
    """Return the weight of what was learned so long ago, 0 to 1."""
    return math.exp2(-max(age_s, 0.0) / HALF_LIFE_S)


@dataclass(frozen=True, slots=True)
class Link:
    """How long KV takes from one worker to another."""

    fixed_ms: float = 3.0
    ms_per_token: float = 0.002
    num_learned: float = 500.0
    """Tokens of which `ms_per_token` is the mean; transfers long past count less."""
    learned_at: float = 0.0

    def learn(self, num_tokens: int, exposed_seconds: float, now: float, alone_seconds: float | None = None) -> Link:
        """Return the link as it is known after one more transfer.

        `exposed_seconds` came after the prefill: its last chunk took no longer. `alone_seconds` are those since the transfer
        before it was there: all of it took no longer, as one waits for the other.
        """
        exposed_ms = max(1000 * exposed_seconds - self.fixed_ms, 0.0)
        took_ms = exposed_ms * max(num_tokens / _TAIL, 1.0)
        if alone_seconds is not None:
            took_ms = min(took_ms, 1000 * alone_seconds)
        before = _KEEP * self.num_learned * kept(now - self.learned_at)
        learned = max(before + num_tokens, 1.0)
        return Link(self.fixed_ms, (before * self.ms_per_token + took_ms) / learned, learned, now)

    def busy_ms(self, num_tokens: int, now: float) -> float:
        """Predict for how long a transfer has the link to itself; what was learned long ago is forgotten."""
        new = NEW_LINK.ms_per_token
        learned = self.ms_per_token - new
        return num_tokens * (new + (learned and learned * kept(now - self.learned_at)))

    def exposed_ms(self, num_tokens: int, prefill_ms: float, now: float) -> float:
        """Predict the ms that a transfer adds to a prefill of so many: those of its last chunk, or of what is slower than it."""
        busy_ms = self.busy_ms(num_tokens, now)
        tail_ms = busy_ms * min(_TAIL / num_tokens, 1.0) if num_tokens else 0.0
        return self.fixed_ms + max(tail_ms, busy_ms - prefill_ms)


NEW_LINK = Link()
