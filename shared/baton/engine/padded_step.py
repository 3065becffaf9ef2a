"""A step in one of a few fixed shapes, so that a captured one serves all that fit.

A shape has room for so many tokens, and rows for so many decodes and so many chunks of prompts. The step's tokens lie as
they do without padding; tokens to spare write to the scratch block, rows to spare have length 0. Lengths, block tables and
where the chunks begin are read on the device, and so is each row's last token: a step can be launched before the host has
seen the tokens of the one before it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from torch import Tensor

from baton.engine.batch import BatchBuilder, HostBatch, known_tokens
from baton.models.causal_lm import CausalLM
from baton.models.step import Step

MAX_CHUNKS = 16
"""Chunks that a shape has rows for; one without tokens costs an empty tile of attention."""
LARGEST_MIXED = 2048
"""Beyond, the library's attention is worth more than the launches, and it wants lengths that the host knows."""
LAUNCH_BOUND_PRODUCTS = 8.5e12
"""Parameters times tokens from which a step that is launched kernel by kernel keeps a GPU busy: 330 to 480 launches take
12 to 23 ms of Python, and 25 beside the threads of a worker that serves. In those an H200 does as many products (8B: 1,024
tokens; served steps of 513 to 1,000 tokens all took 25 ms)."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """Room for tokens, for sequences with one of them, and for sequences with more."""

    num_tokens: int
    num_decodes: int
    num_chunks: int
    num_groups: int = 1
    """KV groups: a token has a slot in each."""

    @property
    def num_seqs(self) -> int:
        """Rows, used or not."""
        return self.num_decodes + self.num_chunks

    @property
    def lens(self) -> list[int]:
        """Lengths of a step's inputs: token ids, sources, positions; slots; sequence lengths, rows; query starts."""
        num_slots = self.num_groups * self.num_tokens
        return [self.num_tokens] * 3 + [num_slots] + [self.num_seqs] * 2 + [self.num_seqs + 1]


class StepShapes:
    """The shapes of an engine's steps, close together where padding costs most."""

    def __init__(self, num_parameters: int, *, max_num_seqs: int, max_num_tokens: int, num_groups: int = 1) -> None:
        self._num_groups = num_groups
        decodes = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16), *range(544, max_num_seqs, 32))
        mixed = (16, 32, 64, 96, *range(128, 512, 32), *range(512, 2048, 128))
        bound = int(LAUNCH_BOUND_PRODUCTS / num_parameters) // 64 * 64
        self._max_num_seqs = max_num_seqs
        self._decodes = _up_to(max_num_seqs, decodes)
        self._mixed = _up_to(min(max_num_tokens, LARGEST_MIXED, bound), mixed)

    @property
    def all(self) -> list[StepShape]:
        """Every shape, the largest first."""
        shapes = [*map(self._of_decodes, self._decodes), *map(self._of_mixed, self._mixed)]
        return sorted(shapes, key=lambda shape: shape.num_tokens, reverse=True)

    @property
    def most_mixed(self) -> int:
        """Tokens of the largest step that has chunks beside decodes; 0: there is none."""
        return self._mixed[-1] if self._mixed else 0

    def fit(self, batch: HostBatch) -> StepShape | None:
        """Find the smallest shape with room for a step; None: none has."""
        num_tokens, num_chunks = len(batch.token_ids), len(batch.rows) - batch.num_decodes
        sizes = self._mixed if num_chunks else self._decodes
        at = bisect_left(sizes, num_tokens)
        if at == len(sizes) or num_chunks > MAX_CHUNKS:
            return None
        return self._of_mixed(sizes[at]) if num_chunks else self._of_decodes(sizes[at])

    def _of_decodes(self, size: int) -> StepShape:
        return StepShape(size, size, 0, self._num_groups)

    def _of_mixed(self, size: int) -> StepShape:
        return StepShape(size, min(size, self._max_num_seqs), MAX_CHUNKS, self._num_groups)


def _up_to(largest: int, sizes: tuple[int, ...]) -> list[int]:
    return [*(size for size in sizes if size < largest), largest] if largest > 0 else []


def pack(batch: HostBatch, shape: StepShape) -> np.ndarray:
    """Lay a step's inputs out as `forward` takes them, one after the other, int64."""
    packed = np.zeros(sum(shape.lens), dtype=np.int64)
    token_ids, sources, positions, slots, seq_lens, rows, query_start = (
        packed[first:last] for first, last in pairwise(accumulate(shape.lens, initial=0))
    )
    num_tokens, num_decodes = len(batch.token_ids), batch.num_decodes
    token_ids[:num_tokens] = batch.token_ids
    sources[:num_tokens] = batch.sources
    sources[num_tokens:] = -1
    positions[:num_tokens] = batch.positions
    slots.reshape(shape.num_groups, -1)[:, :num_tokens] = batch.slots
    chunks = slice(shape.num_decodes, shape.num_decodes + len(batch.rows) - num_decodes)
    for padded, given in ((seq_lens, batch.seq_lens), (rows, batch.rows), (query_start, batch.query_start)):
        padded[:num_decodes] = given[:num_decodes]
        padded[chunks] = given[num_decodes : len(batch.rows)]
    query_start[num_decodes : chunks.start] = num_decodes
    query_start[chunks.stop :] = num_tokens
    return packed


def forward(
    model: CausalLM, caches: Sequence[Tensor], batches: BatchBuilder, shape: StepShape, packed: Tensor
) -> Tensor:
    """Compute a padded step's hidden states, [num_tokens, hidden_size], knowing nothing of it but its shape."""
    token_ids, sources, positions, slots, seq_lens, rows, query_start = packed.split_with_sizes(shape.lens)
    by_layer = batches.attention_batches(
        rows,
        slots.chunk(shape.num_groups),
        query_start=query_start.int(),
        seq_lens=seq_lens.int(),
        num_decodes=shape.num_decodes,
        query_lens_host=[1] * shape.num_seqs,
        seq_lens_host=[],
    )
    token_ids = known_tokens(token_ids, sources, batches.last_tokens)
    return model.forward(Step(token_ids, positions, caches, by_layer))
