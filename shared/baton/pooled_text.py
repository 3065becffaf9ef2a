"""Texts, and pairs of them, as the token ids that a model pools; cut to a length where that is asked. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from baton.errors import refuse
from baton.pooling import pooled_too_long
from baton.text import Tokenizer


@dataclass(frozen=True, slots=True)
class Cut:
    """How long a prompt may be, and what becomes of a longer one."""

    max_model_len: int
    keep: int | None = None
    """Tokens that are kept; None: it is refused."""
    side: Literal["left", "right"] = "right"
    """Where it is cut."""

    @classmethod
    def of(cls, asked: int | None, side: Literal["left", "right"] | None, max_model_len: int) -> Cut:
        """Take what a request says.

        Raises:
            InvalidRequest: more tokens are to be kept than the model takes.
        """
        if asked is not None and asked > max_model_len:
            limit = f"this model takes {max_model_len} tokens"
            raise refuse("truncate_prompt_tokens", asked, limit, "Give that or less, or -1 for as many as it takes.")
        if asked == 0:
            raise refuse("truncate_prompt_tokens", 0, "it would leave nothing", "Give 1 or more, or -1.")
        return cls(max_model_len, max_model_len if asked == -1 else asked, side or "right")

    def ids(self, token_ids: list[int], field: str) -> list[int]:
        """Cut ids as they are.

        Raises:
            ContextTooLong: they are too many, and none are to be cut.
        """
        if self.keep is None or len(token_ids) <= self.keep:
            if len(token_ids) > self.max_model_len:
                raise pooled_too_long(str(len(token_ids)), self.max_model_len, field)
            return token_ids
        return token_ids[: self.keep] if self.side == "right" else token_ids[-self.keep :]


def encode_texts(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    cut: Cut,
    *,
    field: str,
    lowercase: bool,
    add_special_tokens: bool = True,
) -> list[list[int]]:
    """Return the ids of texts; a text that is cut keeps its special tokens. For any thread.

    lowercase: as the model's `PoolingFacts` say.

    Raises:
        ContextTooLong: one is too long, and is not to be cut.
    """
    if lowercase:
        texts = [text.lower() for text in texts]
    encoded = tokenizer.encode_all(texts, add_special_tokens=add_special_tokens)
    keep = cut.keep
    for i, token_ids in enumerate(encoded):
        if keep is not None and len(token_ids) > keep and add_special_tokens:
            encoded[i], _ = tokenizer.encode_cut(texts[i], None, keep, cut.side)
        else:
            encoded[i] = cut.ids(token_ids, field if len(texts) == 1 else f"{field}[{i}]")
    return encoded


def encode_pairs(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], cut: Cut, *, field: str, lowercase: bool
) -> list[tuple[list[int], int]]:
    """Return the ids of each pair, and where its second text begins if the model is told; as `encode_texts`."""
    if lowercase:
        pairs = [(first.lower(), second.lower()) for first, second in pairs]
    encoded = [tokenizer.encode_cut(*pair, cut.keep, cut.side) for pair in pairs]
    for i, (token_ids, _) in enumerate(encoded):
        if len(token_ids) > cut.max_model_len:
            raise pooled_too_long(str(len(token_ids)), cut.max_model_len, field if len(pairs) == 1 else f"{field}[{i}]")
    return encoded
