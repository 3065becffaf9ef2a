"""Filling in the middle: how models that learned it are shown what stands before a gap and what stands behind."""

from __future__ import annotations

from dataclasses import dataclass

from baton.text import Tokenizer

_APART = "☺"
"""Begins no word together with anything: behind it, a tokenizer that puts a space before each text puts none."""


@dataclass(frozen=True, slots=True)
class Infilling:
    """One family's form: `before`, the prefix, `behind`, the suffix, `middle`; the model goes on with what is missing."""

    before: int
    behind: int
    middle: int
    ends: tuple[int, ...] = ()
    """Tokens beside the model's own end that end the missing part."""
    glues_suffix: bool = False
    """Whether the suffix is read without the space that its tokenizer puts before a text."""

    def suffix_ids(self, tokenizer: Tokenizer, suffix: str) -> list[int]:
        """Return the suffix as the model reads it."""
        if not self.glues_suffix:
            return tokenizer.encode(suffix, add_special_tokens=False)
        mark = tokenizer.encode(_APART, add_special_tokens=False)
        return tokenizer.encode(_APART + suffix, add_special_tokens=False)[len(mark) :]

    def prompt(self, begin: list[int], prefix_ids: list[int], suffix_ids: list[int]) -> list[int]:
        """Return the whole prompt; `begin` is what the tokenizer puts before any."""
        return [*begin, self.before, *prefix_ids, self.behind, *suffix_ids, self.middle]


_FORMS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite code
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"),  # CodeLlama
)


def infilling_of(tokenizer: Tokenizer) -> Infilling | None:
    """Find the form that a model learned, by the tokens that it has for it."""
    for form in _FORMS:
        ids = [token_id for token in form if (token_id := tokenizer.token_id(token)) is not None]
        if len(ids) == len(form):
            before, behind, middle, *ends = ids
            return Infilling(before, behind, middle, ends=tuple(ends), glues_suffix=bool(ends))
    return None
