"""A prompt that is cut because its request says so, and how much of it is left."""

from __future__ import annotations

from baton.errors import refuse
from baton.requests.sampling import SamplingRequest


def cut_prompt(request: SamplingRequest, token_ids: list[int], max_model_len: int, max_tokens: int | None) -> list[int]:
    """Return what truncate_prompt_tokens leaves: the last tokens, or the first with truncation_side right.

    -1 leaves as many as the context holds beside an answer of `max_tokens`, or of one token.

    Raises:
        InvalidRequest: more than the context.
    """
    keep = request.truncate_prompt_tokens
    if keep is None:
        return token_ids
    if keep > max_model_len:
        limit = f"this model's context holds {max_model_len} tokens"
        raise refuse("truncate_prompt_tokens", keep, limit, "Give fewer, or -1 for as many as fit.")
    if keep == -1:
        keep = max(max_model_len - max(max_tokens or 1, 1), 1)
    return token_ids[:keep] if request.truncation_side == "right" else token_ids[-keep:]
