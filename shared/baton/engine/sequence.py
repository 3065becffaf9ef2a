"""One generation inside the engine: its tokens, its blocks, and how far its KV has come.

A sequence has no phase. It needs `num_tokens - num_computed` tokens of work; a prompt's chunk, a prefix hit,
KV from elsewhere, preemption and a lost transfer are only ways `num_computed` gets its value. The state says who
may touch the sequence, not what its next tokens are. The scheduler writes every field but the first group.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any, Protocol

from baton.block_hash import hash_blocks, hash_tail
from baton.pooling import PoolingParams
from baton.prompt import Prompt
from baton.protocol import NOBODY, SamplingParams, Share


class SequenceState(Enum):
    """Where a sequence stands with the scheduler.

    NEW ── add ──────> WAITING ── plan ──> RUNNING ── hold ──> HELD         any ── finish ──> FINISHED
     └─ receive ─> RECEIVING ─ admit ─^       │
                       WAITING <── preempt ───┘
    WAITING ── plan, where its blocks come back from the host's memory ──> RECEIVING
    """

    NEW = "new"
    """Not the scheduler's yet, or refused by it."""
    WAITING = "waiting"
    """In the queue; holds blocks only if they were imported."""
    RECEIVING = "receiving"
    """Its KV arrives from elsewhere; it owns blocks and stays out of plans."""
    RUNNING = "running"
    """Takes part in every plan that has room for it."""
    HELD = "held"
    """Done here; its KV is kept until `finish`."""
    FINISHED = "finished"
    """Gives its blocks back, at the latest when its last launched step is committed."""


class Constraint(Protocol):
    """What an answer is held to: it says which tokens may come next, and is told what has come."""

    @property
    def is_ready(self) -> bool:
        """Whether it can be asked; until then its sequence waits in the queue."""

    @property
    def num_taken(self) -> int:
        """Tokens of the answer that were taken."""

    @property
    def is_over(self) -> bool:
        """Whether nothing may follow what was taken."""

    def is_free(self, num_tokens: int) -> bool:
        """Whether the answer's tokens up to its `num_tokens`th may be any, whatever those are that are not taken yet."""

    def take(self, token_ids: Iterable[int]) -> None:
        """Go on by the answer's next tokens; raises `BatonError` if it cannot."""

    def mask(self, row: Any) -> None:
        """Write which tokens may come next; raises `BatonError` if none.

        row: [ceil(vocab_size / 32)] int32 of numpy, token t at bit t % 32 of word t // 32.
        """

    def restart(self) -> None:
        """Forget what was taken; it will be given again."""


class Sequence:
    """A prompt and the tokens sampled after it.

    `max_len` bounds prompt plus output; `arrival` breaks ties of `priority` (lower first) and is given by the
    scheduler if left out. `root` is the start of the block hashes (see `cache_root`); `block_hashes` are those that
    the caller has computed from it already. `reuse_prefix=False` has every position computed here, as prompt
    log-probabilities need.
    """

    __slots__ = (
        "arrival",
        "block_hashes",
        "constraint",
        "max_len",
        "next_full",
        "num_cached",
        "num_computed",
        "num_in_flight",
        "num_indexed",
        "num_passed",
        "num_pending",
        "num_preemptions",
        "num_prompt_tokens",
        "num_restored",
        "num_restores",
        "num_slots",
        "params",
        "pooling",
        "priority",
        "rank",
        "reuse_prefix",
        "root",
        "sequence_id",
        "share",
        "spans",
        "state",
        "tables",
        "token_ids",
    )

    def __init__(
        self,
        sequence_id: str,
        prompt: Prompt,
        params: SamplingParams,
        *,
        max_len: int,
        priority: int = 0,
        arrival: int | None = None,
        root: bytes = b"",
        block_hashes: list[bytes] | None = None,
        reuse_prefix: bool = True,
        share: Share = NOBODY,
        pooling: PoolingParams | None = None,
    ) -> None:
        self.sequence_id = sequence_id
        self.token_ids = list(prompt.token_ids)
        self.num_prompt_tokens = len(prompt)
        self.spans = prompt.spans
        self.params = params
        self.max_len = max_len
        self.priority = priority
        self.arrival = arrival
        self.root = root
        self.reuse_prefix = reuse_prefix
        self.share = share
        self.pooling = pooling
        """What is wanted in place of tokens, if so."""

        self.constraint: Constraint | None = None
        """What its answer is held to. It waits in the queue until that is ready."""
        self.state = SequenceState.NEW
        self.rank = (priority, 0.0, -1 if arrival is None else arrival)
        """Order of service, least first."""
        self.num_computed = 0
        """Tokens whose KV is in the blocks, or is being written there by a launched step."""
        self.num_pending = 0
        """Tokens that launched steps are certain to add and the host does not know yet, one a row that samples."""
        self.num_in_flight = 0
        """Launched steps, not yet committed, with a row for this sequence."""
        self.tables: list[list[int]] = []
        """For each KV group the block of every `block_size` tokens; 0 where the group's window has passed."""
        self.num_passed: list[int] = []
        """For each KV group how many leading blocks its window has passed."""
        self.num_slots = 0
        """Tokens that the blocks have room for, in every group."""
        self.block_hashes: list[bytes] = [] if block_hashes is None else list(block_hashes)
        """One for each full block of known tokens, as far as they were needed; kept over preemption."""
        self.num_indexed = 0
        """Leading blocks that the prefix cache has seen."""
        self.next_full = 0
        """Tokens computed when the next block is full: a comparison in place of a division 256 times a step."""
        self.num_cached = 0
        """Prompt tokens served by the prefix cache at first admission, for a true usage; with those that came back from the
        host's memory."""
        self.num_restored = 0
        """Those of them that came back."""
        self.num_restores = 0
        """1 + `num_preemptions` when the host's memory was last asked for its blocks."""
        self.num_preemptions = 0

    @property
    def num_tokens(self) -> int:
        """Prompt and output, tokens still on the device included."""
        return len(self.token_ids) + self.num_pending

    @property
    def num_output_tokens(self) -> int:
        """Sampled tokens that the host knows."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def is_full(self) -> bool:
        """Whether the known tokens have reached `max_len`: the caller finishes it with reason length."""
        return len(self.token_ids) >= self.max_len

    def extend_hashes(self, block_size: int) -> None:
        """Hash the full blocks of known tokens that have no hash yet."""
        hash_blocks(self.root, self.block_hashes, self.token_ids, block_size, self.spans)

    def hash_tail(self, num_tokens: int, block_size: int) -> bytes:
        """Hash those of the first `num_tokens` that follow their last full block, which is hashed already."""
        num_full = num_tokens // block_size
        parent = self.block_hashes[num_full - 1] if num_full else None
        return hash_tail(self.root, parent, self.token_ids[:num_tokens], num_full * block_size, block_size, self.spans)

    def __repr__(self) -> str:
        return (
            f"Sequence({self.sequence_id}, {self.state.value}, tokens={len(self.token_ids)}+{self.num_pending}, "
            f"computed={self.num_computed}, slots={self.num_slots})"
        )
