"""Generation: what is asked for, one prompt and how to go on from it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from baton.beam_search import BeamSearchParams
from baton.block_hash import cache_root, hash_blocks
from baton.prompt import Prompt
from baton.protocol import NOBODY, SamplingParams, Share
from baton.router.pin import Pin


@dataclass(slots=True)
class Generation:
    """What is asked for. Fixed over replays."""

    prompt: Prompt
    params: SamplingParams
    salt: bytes = b""
    priority: int = 0
    deadline: float | None = None
    """By the clock of the pool."""
    public_id: str = ""
    """What the client sees; never a key between services."""
    seed: int = 0
    pin: Pin | None = None
    tenant: bytes = b""
    """Whose it is; empty without keys."""
    share: Share = NOBODY
    beams: BeamSearchParams | None = None
    """How to search, where an answer is not sampled."""
    hashes: dict[tuple[str, ...], list[bytes]] = field(default_factory=dict)
    """The prompt's block hashes by cache parts, as far as they were needed."""
    num_ahead: int = 0
    """Of a look ahead: choices that will be there before it, as their prompts are being read."""

    def __post_init__(self) -> None:
        if self.params.seed is not None:
            self.seed = self.params.seed
        else:  # minted once, so that a replay samples the same
            self.seed = int.from_bytes(os.urandom(8), "little") >> 1

    def seconds_left(self, now: float) -> float | None:
        """How long it is to the deadline, negative after it; None: there is none."""
        return None if self.deadline is None else self.deadline - now


def hash_prompt(generation: Generation, parts: tuple[str, ...], key: str, block_size: int) -> list[bytes]:
    """Hash a prompt's full blocks, as a worker of these cache parts does. For any thread."""
    hashes: list[bytes] = []
    if generation.params.prompt_logprobs is None:  # scoring a prompt computes all of it
        root = cache_root(key.encode(), *parts, generation.salt)
        hash_blocks(root, hashes, generation.prompt.token_ids, block_size, generation.prompt.spans)
    return hashes
