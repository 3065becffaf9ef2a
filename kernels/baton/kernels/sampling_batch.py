"""How the rows of a draw are sampled; what each parameter means: sample.py."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class SamplingBatch:
    """How each of N rows is sampled. None, or a false flag, means that no row uses the parameter."""

    temperature: Tensor  # [N] fp32; 0: greedy
    top_k: Tensor  # [N] int32; 0: off
    top_p: Tensor  # [N] fp32 in (0, 1]
    min_p: Tensor  # [N] fp32 in [0, 1)
    keys: Tensor  # [N, 2] int32, from derive_keys
    all_greedy: bool = False  # flags are of the host, so that no path reads the device
    any_top_k: bool = False
    any_top_p: bool = False
    any_min_p: bool = False
    # The next five come together, where any row has a penalty.
    repetition_penalty: Tensor | None = None  # [N] fp32; 1: off
    presence_penalty: Tensor | None = None  # [N] fp32; 0: off
    frequency_penalty: Tensor | None = None  # [N] fp32; 0: off
    counts: Tensor | None = None  # [rows, vocab] int32, of token_counts.py
    count_rows: Tensor | None = None  # [N] int64, each row's in counts; unread where its penalties are off
    bias_rows: Tensor | None = None  # [M] int64; with the next two, values added to single logits (-inf bans a token)
    bias_token_ids: Tensor | None = None  # [M] int64
    bias_values: Tensor | None = None  # [M] fp32
    allowed: Tensor | None = None  # [N, vocab] bool

    @property
    def has_penalties(self) -> bool:
        """Whether any row has a penalty."""
        return self.repetition_penalty is not None

    @property
    def inverse_temperature(self) -> Tensor:
        """What scales the logits, [N] fp32; 1 on greedy rows."""
        return torch.where(self.temperature == 0, torch.ones_like(self.temperature), self.temperature.reciprocal())

    @property
    def changes_logits(self) -> bool:
        """Whether `sample` may leave other logits than it was given."""
        return self.has_penalties or self.allowed is not None or self.bias_rows is not None
