"""What a step is to the layers: its tokens, and where each layer's KV of them lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from baton.kernels.attention_batch import AttentionBatch


@dataclass(slots=True)
class Step:
    """The tokens of one step, on the device. Goes down the layers whole; a layer takes what it needs."""

    token_ids: Tensor  # [num_tokens] int64
    positions: Tensor  # [num_tokens] int64, each below the model's max_model_len
    caches: Sequence[Tensor]  # by layer: [num_blocks, 2, block_size, kv_heads, head_dim]
    batches: Sequence[AttentionBatch]  # by layer: sequences and block table of its KV group
    second: Tensor | None = None  # [num_tokens] int64: 1 for those of a pair's second text; None: there are no pairs
