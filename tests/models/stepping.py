"""A hand-made engine for tests: runs a model's steps over a paged cache, as any schedule says."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

from baton.kernels.attention_batch import AttentionBatch
from baton.models.causal_lm import CausalLM
from baton.models.step import Step


@dataclass
class Stream:
    """One sequence: its tokens, how many of them are computed, and the logits behind each computed one."""

    tokens: list[int]
    num_computed: int = 0
    block_ids: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)


class Stepper:
    """Compute any number of tokens of any sequences in one step."""

    def __init__(self, model: CausalLM, num_blocks: int = 128, block_size: int = 16, seed: int = 0) -> None:
        spec = model.spec
        self.model = model
        self.block_size = block_size
        parts = 1 if spec.latent else 2
        shape = (num_blocks, spec.num_layers, parts, block_size, spec.num_kv_heads, spec.head_dim)
        # What was in a cache before must not matter, so it starts with large values instead of zeros.
        generator = torch.Generator().manual_seed(seed)
        self.kv = (torch.randn(shape, generator=generator) * 100).to(model.device, model.dtype)
        self._free = list(range(1, num_blocks))
        random.Random(seed).shuffle(self._free)

    @torch.inference_mode()
    def step(self, *work: tuple[Stream, int]) -> None:
        """Compute the next n tokens of each stream, all in one step, decodes first."""
        ordered = sorted(work, key=lambda item: item[1] > 1)
        lens = [n for _, n in ordered]
        token_ids, positions, slots, contexts = [], [], [], []
        for stream, n in ordered:
            context = stream.num_computed + n
            assert context <= len(stream.tokens)
            while len(stream.block_ids) * self.block_size < context:
                stream.block_ids.append(self._free.pop())
            for position in range(stream.num_computed, context):
                token_ids.append(stream.tokens[position])
                positions.append(position)
                block_id = stream.block_ids[position // self.block_size]
                slots.append(block_id * self.block_size + position % self.block_size)
            contexts.append(context)
            stream.num_computed = context
        hidden = self._forward(ordered, lens, token_ids, positions, slots, contexts)
        logits = self.model.logits(hidden)
        for (stream, _), rows in zip(ordered, logits.split(lens), strict=True):
            stream.logits.extend(rows)

    def _forward(
        self,
        ordered: list[tuple[Stream, int]],
        lens: list[int],
        token_ids: list[int],
        positions: list[int],
        slots: list[int],
        contexts: list[int],
    ) -> Tensor:
        device = self.model.device
        max_blocks = max(len(stream.block_ids) for stream, _ in ordered)
        table = [stream.block_ids + [0] * (max_blocks - len(stream.block_ids)) for stream, _ in ordered]
        batch = AttentionBatch(
            block_table=torch.tensor(table, dtype=torch.int32, device=device),
            query_start=torch.tensor([0, *itertools.accumulate(lens)], dtype=torch.int32, device=device),
            seq_lens=torch.tensor(contexts, dtype=torch.int32, device=device),
            slots=torch.tensor(slots, device=device),
            num_decodes=sum(n == 1 for n in lens),
            query_lens_host=lens,
            seq_lens_host=contexts,
        )
        caches = self.kv.unbind(1)
        ids, at = torch.tensor(token_ids, device=device), torch.tensor(positions, device=device)
        return self.model.forward(Step(ids, at, caches, [batch] * len(caches)))

    def generate(self, stream: Stream, num_tokens: int) -> list[int]:
        """Finish a stream's prompt in one step, then decode greedily, one token a step."""
        self.step((stream, len(stream.tokens) - stream.num_computed))
        for _ in range(num_tokens - 1):
            stream.tokens.append(int(stream.logits[-1].argmax()))
            self.step((stream, 1))
        stream.tokens.append(int(stream.logits[-1].argmax()))
        return stream.tokens[-num_tokens:]
