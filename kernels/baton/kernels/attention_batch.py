"""Where the sequences of a mixed step lie in the paged cache: what every attention kernel reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(slots=True)
class AttentionBatch:
    """The sequences of one step over one block table. Those with one query token come first, `num_decodes` of them."""

    block_table: Tensor  # [num_seqs, max_blocks] int32, unused entries 0
    query_start: Tensor  # [num_seqs + 1] int32, cumulative query lengths
    seq_lens: Tensor  # [num_seqs] int32, context length including this step's tokens; 0 on padding rows
    slots: Tensor  # [num_tokens] int64, where each token's K and V go
    num_decodes: int
    query_lens_host: Sequence[int]  # host copies, so that no path reads the device
    seq_lens_host: Sequence[int]
    plans: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False, compare=False)
    """What the layers of the step share (work lists, masks); the first layer that needs it makes it, under a key that
    begins with its maker's name."""

    @property
    def num_seqs(self) -> int:
        return len(self.query_lens_host)
