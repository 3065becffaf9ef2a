"""What a checkpoint's tokenizer and chat template are, and how Baton would read the model's answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.errors import InvalidRequest
from baton.router.openai.parsers.reasoning_forms import reasoning_form_of
from baton.router.openai.parsers.tool_forms import tool_form_of
from baton.text import Tokenizer


@dataclass(frozen=True, slots=True)
class Words:
    """A tokenizer, and what its chat template tells of the model."""

    tokenizer: Tokenizer
    kind: str
    vocab_size: int
    end_token_ids: tuple[int, ...]
    template: str | None
    """Where the chat template stands; None: there is none."""
    template_names: tuple[str, ...]
    tool_parser: str
    reasoning_parser: str

    @property
    def ends(self) -> list[str]:
        """The tokens that end an answer, as they are written."""
        return [self.tokenizer.token(token_id) for token_id in self.end_token_ids]


def read_words(folder: Path, named_ends: tuple[int, ...]) -> Words:
    """Read the tokenizer of a folder; `named_ends` are what the model's configs call the end.

    Raises:
        ModelLoadError: it has none, or one that is damaged.
    """
    tokenizer = Tokenizer(folder)
    return Words(
        tokenizer=tokenizer,
        kind=_kind(json.loads(tokenizer.to_json())["model"]),
        vocab_size=tokenizer.vocab_size,
        end_token_ids=tokenizer.end_token_ids(named_ends),
        template=_template_source(folder, tokenizer),
        template_names=tuple(sorted(tokenizer.chat_templates.sources)),
        tool_parser=tool_form_of(text) if (text := _template(tokenizer, with_tools=True)) else "none",
        reasoning_parser=reasoning_form_of(_template(tokenizer, with_tools=False)),
    )


def _kind(model: dict[str, Any]) -> str:
    kind = str(model.get("type", "unknown"))
    if kind in ("BPE", "Unigram") and model.get("byte_fallback"):
        return f"{kind} with byte fallback"
    return kind


def _template(tokenizer: Tokenizer, *, with_tools: bool) -> str:
    try:
        return tokenizer.chat_templates.source(with_tools=with_tools)
    except InvalidRequest:
        return ""


def _template_source(folder: Path, tokenizer: Tokenizer) -> str | None:
    if not tokenizer.chat_templates.sources:
        return None
    names = ("chat_template.jinja", "tokenizer_config.json", "chat_template.json")
    for name in names:
        file = folder / name
        if file.is_file() and (name.endswith(".jinja") or "chat_template" in file.read_text(encoding="utf-8")):
            return name
    return "additional_chat_templates/"
