"""Attention over latents, beside its formula written out."""

from __future__ import annotations

import torch

from baton.kernels.attention_batch import AttentionBatch
from baton.kernels.latent_attention import latent_attention, latent_write


def test_a_query_sees_its_own_sequence_up_to_itself_and_no_ones_rests() -> None:
    generator = torch.Generator().manual_seed(0)
    lens, contexts = [1, 3], [5, 7]
    latents = torch.full((8, 1, 4, 1, 12), float("nan"))
    table = torch.tensor([[3, 5], [6, 2]], dtype=torch.int32)
    vectors = [torch.randn(length, 12, generator=generator) for length in contexts]
    slots = [table[i, torch.arange(n) // 4].long() * 4 + torch.arange(n) % 4 for i, n in enumerate(contexts)]
    for vector, at in zip(vectors, slots, strict=True):
        latent_write(vector, latents, at)
    q = torch.randn(4, 6, 12, generator=generator)
    batch = AttentionBatch(table, torch.tensor([0, 1, 4]), torch.tensor(contexts), torch.zeros(4), 1, lens, contexts)
    given = latent_attention(q, latents, batch, scale=0.3, rank=8)
    for row, (own, end) in enumerate([(0, 5), (1, 5), (1, 6), (1, 7)]):
        context = vectors[own][:end]
        expected = (0.3 * q[row] @ context.t()).softmax(-1) @ context[:, :8]
        torch.testing.assert_close(given[row], expected)
