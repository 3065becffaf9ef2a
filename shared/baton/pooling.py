"""What is asked of a model that pools, and what such a model can: vectors, classes and scores in place of tokens. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from baton.errors import ContextTooLong, refuse
from baton.prompt import Prompt

Task = Literal["embed", "classify", "token_embed", "token_classify"]
"""One vector a prompt, its classes' scores, and the same for each of its tokens; vLLM's names."""
Size = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]


class PoolingFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What callers must know of a model that pools."""

    tasks: tuple[Task, ...]
    size: Size
    """Numbers of a vector; classes, for a classifier."""
    is_matryoshka: bool = False
    """Whether a vector may be cut: its first numbers are a vector too."""
    matryoshka_sizes: tuple[int, ...] = ()
    """To which lengths; none: to any."""
    labels: tuple[str, ...] = ()
    """A classifier's classes by name."""
    lowercase: bool = False
    """Whether texts are written in small letters before they are encoded."""
    caches_prefixes: bool = True

    def check_task(self, task: Task) -> None:
        """Refuse what this model is not made for.

        Raises:
            InvalidRequest: names what it is made for.
        """
        if task not in self.tasks:
            raise refuse("task", task, f"this model serves {', '.join(self.tasks)}", "Ask a model that is made for it.")

    def check_dimensions(self, dimensions: int | None) -> None:
        """Refuse vectors of a length that the model does not give.

        Raises:
            InvalidRequest: names the lengths that it gives.
        """
        if dimensions is None or dimensions == self.size:
            return
        if not self.is_matryoshka:
            limit = f"this model's vectors have {self.size} numbers, and config.json does not say that they may be cut"
            raise refuse("dimensions", dimensions, limit, "Leave it out (is_matryoshka in config.json allows it).")
        if self.matryoshka_sizes and dimensions not in self.matryoshka_sizes:
            raise refuse("dimensions", dimensions, f"it must be one of {', '.join(map(str, self.matryoshka_sizes))}")
        if not 1 <= dimensions <= self.size:
            raise refuse("dimensions", dimensions, f"it must be 1 to {self.size}")


class PoolingParams(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What is wanted of one prompt."""

    task: Task = "embed"
    dimensions: Size | None = None
    """Numbers of a vector that are kept; None: all."""
    use_activation: bool | None = None
    """Normalize a vector, or make probabilities of classes; None: as the model is made."""
    second_at: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0
    """Where the second text of a pair begins; 0: there is one text."""


def check_pooled_prompt(prompt: Prompt, vocab_size: int, max_model_len: int, field: str = "input") -> None:
    """Refuse a prompt that the model cannot take; `field` is what the user wrote it in.

    Raises:
        InvalidRequest: empty, ids outside the vocabulary, or longer than the context.
    """
    token_ids = prompt.token_ids
    if not isinstance(token_ids, list) or not set(map(type, token_ids)) <= {int}:
        raise refuse(field, token_ids, "it must be a list of whole numbers")
    if not token_ids:
        raise refuse(field, [], "it is empty", "Send at least one token.")
    if min(token_ids) < 0 or max(token_ids) >= vocab_size:
        wrong = next(t for t in token_ids if not 0 <= t < vocab_size)
        raise refuse(field, wrong, f"token ids of this model are 0 to {vocab_size - 1}")
    if prompt.spans:
        raise refuse("spans", len(prompt.spans), "this model reads token ids and no media")
    if len(token_ids) > max_model_len:
        raise pooled_too_long(str(len(token_ids)), max_model_len, field)


def pooled_too_long(num_tokens: str, max_model_len: int, field: str = "input") -> ContextTooLong:
    """Make the error of a prompt that is longer than the context; `num_tokens` is its length in words."""
    return ContextTooLong(
        f"{field} of {num_tokens} tokens is not valid: this model's maximum context length is {max_model_len} tokens. "
        "Shorten it, or set truncate_prompt_tokens to keep its beginning (-1: as many tokens as the model takes).",
        field=field,
        code="context_length_exceeded",
    )
