"""Log-probabilities in the three forms that clients know. A token's text and bytes are what it adds to the text.

With `as_ids` a token is named by its number in place of its text, as vLLM's return_tokens_as_token_ids asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from baton.messages import TokenLogprobs, read_rows
from baton.text import Tokenizer, unnamed

_MIN_LOGPROB = -9999.0
"""JSON has no infinity."""


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt as it stands before its answers."""

    text: str
    offsets: Sequence[int] = ()
    """Where each token of the prompt begins in it; empty where nobody asks."""


def chat_logprob(
    row: TokenLogprobs, tokenizer: Tokenizer, *, skips_special: bool, as_ids: bool = False
) -> dict[str, Any]:
    """Return one position in the form of chat completions; special tokens that are not shown have no bytes."""
    entries = [
        {
            "token": name,
            "logprob": max(value, _MIN_LOGPROB),
            "bytes": list(tokenizer.token_bytes(token_id, skip_special_tokens=skips_special)),
        }
        for token_id, name, value in zip(row.token_ids, _names(row, tokenizer, as_ids), row.logprobs, strict=True)
    ]
    return entries[0] | {"top_logprobs": entries[1:]}


class CompletionLogprobs:
    """One choice's positions in the form of completions, in one table or in one a token."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        echo: Echo | None,
        *,
        skips_special: bool,
        as_ids: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids
        self._text = tokenizer.new_stream(prompt_ids, skip_special_tokens=skips_special)
        self._offset = 0 if echo is None else len(echo.text)
        """Characters that stand before the next token."""

    def table(self, token_ids: Sequence[int], rows: Sequence[TokenLogprobs | None]) -> dict[str, Any]:
        """Return the next tokens of the choice. A part of a character stands where the character will."""
        offsets = []
        for token_id in token_ids:
            offsets.append(self._offset)
            self._offset += len(self._text.push(token_id))
        return completion_logprobs(token_ids, rows, offsets, self._tokenizer, as_ids=self._as_ids)


def completion_logprobs(
    token_ids: Sequence[int],
    rows: Sequence[TokenLogprobs | None],
    offsets: Sequence[int],
    tokenizer: Tokenizer,
    *,
    as_ids: bool = False,
) -> dict[str, Any]:
    """Return positions in the form of completions; one without scores, as a prompt's first, has null."""
    names = [
        [unnamed(token_id) if as_ids else tokenizer.token_text(token_id)]
        if row is None
        else _names(row, tokenizer, as_ids)
        for token_id, row in zip(token_ids, rows, strict=True)
    ]
    scores = [None if row is None else [max(value, _MIN_LOGPROB) for value in row.logprobs] for row in rows]
    return {
        "tokens": [each[0] for each in names],
        "token_logprobs": [None if each is None else each[0] for each in scores],
        "top_logprobs": [
            None if s is None else dict(zip(n[1:], s[1:], strict=True)) | {n[0]: s[0]}
            for n, s in zip(names, scores, strict=True)
        ],
        "text_offset": list(offsets),
    }


def _names(row: TokenLogprobs, tokenizer: Tokenizer, as_ids: bool) -> list[str]:
    """Name each token of a position, two of them never alike."""
    if as_ids:
        return list(map(unnamed, row.token_ids))
    owners: dict[str, int] = {}
    names = []
    for token_id in row.token_ids:
        text = tokenizer.token_text(token_id)
        names.append(text if owners.setdefault(text, token_id) == token_id else unnamed(token_id))
    return names


def prompt_logprobs_table(rows: Sequence[msgspec.Raw], tokenizer: Tokenizer) -> list[dict[str, Any] | None]:
    """Return vLLM's prompt_logprobs: for each token of the prompt, token id to score, rank and text."""
    name = tokenizer.token_text
    return [
        None
        if row is None
        else {
            str(token_id): {"logprob": max(value, _MIN_LOGPROB), "rank": rank, "decoded_token": name(token_id)}
            for token_id, value, rank in zip(row.token_ids, row.logprobs, row.ranks, strict=True)
        }
        for row in read_rows(rows)
    ]
