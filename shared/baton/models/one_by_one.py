"""A model that computes one token at a time, so that no token's bits depend on another's company.

On a CPU the library chooses blocks, vector tails and threads by the shape that it is given, in every operation, and
promises nothing about single rows. With one token in each call the shapes never change: a token's bits are a function of
the tokens before it alone. It costs the batch: every token reads all weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from baton.kernels.attention_batch import AttentionBatch
from baton.models.causal_lm import CausalLM
from baton.models.step import Step


class OneByOne(CausalLM):
    """Another model, its steps taken apart into single tokens."""

    def __init__(self, model: CausalLM) -> None:
        super().__init__(model.spec, model.parameters)
        self._model = model

    def forward(self, step: Step) -> Tensor:
        hidden = []
        for at, (seq, context) in enumerate(_contexts(step.batches[0])):
            token = slice(at, at + 1)
            alone = {id(batch): _alone(batch, seq, context, batch.slots[token]) for batch in step.batches}
            batches = [alone[id(batch)] for batch in step.batches]
            hidden.append(self._model.forward(Step(step.token_ids[token], step.positions[token], step.caches, batches)))
        return torch.cat(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.cat([self._model.logits(hidden[at : at + 1]) for at in range(len(hidden))])


def _contexts(batch: AttentionBatch) -> list[tuple[int, int]]:
    """The sequence of each token, and its context with itself."""
    return [
        (seq, seq_len - query_len + 1 + i)
        for seq, (query_len, seq_len) in enumerate(zip(batch.query_lens_host, batch.seq_lens_host, strict=True))
        for i in range(query_len)
    ]


def _alone(batch: AttentionBatch, seq: int, context: int, slot: Tensor) -> AttentionBatch:
    """Make the batch of one token."""
    return AttentionBatch(
        block_table=batch.block_table[seq : seq + 1],
        query_start=torch.tensor([0, 1], dtype=torch.int32),
        seq_lens=torch.tensor([context], dtype=torch.int32),
        slots=slot,
        num_decodes=1,
        query_lens_host=[1],
        seq_lens_host=[context],
    )
