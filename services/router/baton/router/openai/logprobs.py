"""Log-probabilities in the three forms that clients know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from baton.messages import TokenLogprobs

TokenText = Callable[[int], str]
_MIN_LOGPROB = -9999.0
"""JSON has no infinity."""


def chat_logprob(row: TokenLogprobs, token_text: TokenText) -> dict[str, Any]:
    """Return one position in the form of chat completions."""
    entries = [
        {"token": text, "logprob": max(value, _MIN_LOGPROB), "bytes": list(text.encode())}
        for text, value in zip(map(token_text, row.token_ids), row.logprobs, strict=True)
    ]
    return entries[0] | {"top_logprobs": entries[1:]}


def completion_logprobs(
    rows: Sequence[TokenLogprobs | None], token_text: TokenText, offset: int, token_ids: Sequence[int] = ()
) -> dict[str, Any]:
    """Return positions in the form of completions; a position without scores (a prompt's first) has null.

    `token_ids` are needed only where rows may be None.
    """
    tokens: list[str] = []
    values: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    offsets: list[int] = []
    for i, row in enumerate(rows):
        text = token_text(token_ids[i] if row is None else row.token_ids[0])
        tokens.append(text)
        offsets.append(offset)
        offset += len(text)
        if row is None:
            values.append(None)
            tops.append(None)
            continue
        scores = [max(value, _MIN_LOGPROB) for value in row.logprobs]
        values.append(scores[0])
        top = {token_text(t): s for t, s in zip(row.token_ids[1:], scores[1:], strict=True)}
        tops.append(top | {text: scores[0]})
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def prompt_logprobs_table(
    rows: Sequence[TokenLogprobs | None] | None, token_text: TokenText
) -> list[dict[str, Any] | None] | None:
    """Return vLLM's prompt_logprobs: for each token of the prompt, token id to score, rank and text."""
    if rows is None:
        return None
    return [
        None
        if row is None
        else {
            str(token_id): {"logprob": max(value, _MIN_LOGPROB), "rank": rank, "decoded_token": token_text(token_id)}
            for token_id, value, rank in zip(row.token_ids, row.logprobs, row.ranks, strict=True)
        }
        for row in rows
    ]
