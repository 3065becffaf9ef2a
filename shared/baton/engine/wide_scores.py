"""Log-probabilities of rows that want many, up to all of the vocabulary: apart from the others, which a kernel scores together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from baton.messages import TokenLogprobs
from baton.protocol import MAX_BEAM_WIDTH, MAX_LOGPROBS

FEW = max(MAX_LOGPROBS, 2 * MAX_BEAM_WIDTH)
"""So many are scored for all rows of a step alike."""


def is_wide(num_top: int | None) -> bool:
    """Whether a row wants more than a few."""
    return num_top is not None and num_top > FEW


def num_few(tops: Iterable[int]) -> int:
    """How many rows that want few want at most."""
    return max((num_top for num_top in tops if not is_wide(num_top)), default=0)


def wide_scores(logits: Tensor, normalizers: Tensor, rows: Sequence[int], num_top: int) -> tuple[Tensor, Tensor]:
    """Sort the named rows, one after another: each takes 12 bytes a token of the vocabulary, and as much while it is sorted.

    logits: [N, vocab]. normalizers: [N].

    Returns:
        ids and log-probabilities, the likeliest first: [rows, num_top] each.
    """
    found = [torch.topk(logits[row], num_top) for row in rows]
    if not found:
        return logits.new_empty((0, num_top), dtype=torch.int64), logits.new_empty((0, num_top))
    scores = torch.stack([each.values - normalizers[row] for each, row in zip(found, rows, strict=True)])
    return torch.stack([each.indices for each in found]), scores


def widened(row: TokenLogprobs, token_ids: list[int], logprobs: list[float], num_top: int) -> TokenLogprobs:
    """Put many scores behind the token that was drawn."""
    return TokenLogprobs(
        row.token_ids[:1] + token_ids[:num_top],
        row.logprobs[:1] + logprobs[:num_top],
        [row.ranks[0], *range(1, min(num_top, len(token_ids)) + 1)],
    )
