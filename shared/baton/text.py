"""Text to tokens and back: tokenizer, chat template, incremental detokenization, stop strings.

Owned by whoever talks to users (`LLM`, the router); workers and the engine see token ids only. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers.decoders import DecodeStream

from baton.errors import InvalidRequest, ModelLoadError, refuse

CONTEXT_TOKENS = 8
"""Prompt tokens that a detokenizer sees first, so that a leading space or half a character comes out right."""


class Tokenizer:
    """A model's own tokenizer and chat template, without torch and without remote code."""

    def __init__(self, path: str | Path, revision: str | None = None, chat_template: str | None = None) -> None:
        """Load from a folder or a hub id.

        Raises:
            ModelLoadError: no tokenizer there, or one that only remote code could load.
        """
        # transformers forks workers for nothing here, and warns about it
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from transformers import AutoTokenizer

        try:
            loaded = AutoTokenizer.from_pretrained(str(path), revision=revision, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ModelLoadError(
                f"tokenizer={str(path)!r} cannot be loaded: {_first_line(error)} "
                f"Name a folder or hub id with a tokenizer.json, or pass skip_tokenizer_init for token ids only."
            ) from error
        if not loaded.is_fast:
            raise ModelLoadError(f"tokenizer={str(path)!r} has no tokenizer.json and cannot be converted to one.")
        self._hf = loaded
        self._backend = loaded.backend_tokenizer
        if chat_template is not None:
            self._hf.chat_template = chat_template

    @property
    def hf(self) -> Any:
        """The `transformers` tokenizer underneath."""
        return self._hf

    @property
    def has_chat_template(self) -> bool:
        """Whether `render_chat` can work."""
        return bool(self._hf.chat_template)

    @property
    def eos_token_id(self) -> int | None:
        """The tokenizer's own end of text."""
        eos: int | None = self._hf.eos_token_id
        return eos

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Give the token ids of `text`, with the tokenizer's own bos and eos if it adds them."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Give the text of whole token ids; for a stream use `Detokenizer`."""
        text: str = self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token_id: int) -> str:
        """Give one token as text, special tokens included, as logprobs show it."""
        return self.decode([token_id], skip_special_tokens=False)

    def render_chat(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **template_kwargs: Any,
    ) -> list[int]:
        """Apply the chat template (in transformers' immutable sandbox) and encode.

        Raises:
            InvalidRequest: the model has no template, or the template refuses these messages.
        """
        if not self.has_chat_template:
            raise InvalidRequest(
                "messages cannot be rendered: this model's tokenizer has no chat template. "
                "Use generate (or /v1/completions), or give a chat template.",
                field="messages",
            )
        if not messages:
            raise refuse("messages", [], "it is empty", "Send at least one message.")
        if add_generation_prompt and continue_final_message:
            raise refuse(
                "continue_final_message", True, "it excludes add_generation_prompt", "Set one of the two to false."
            )
        try:
            text = self._hf.apply_chat_template(
                list(messages),
                tools=list(tools) if tools else None,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tokenize=False,
                **template_kwargs,
            )
        except Exception as error:  # templates raise whatever they like
            raise InvalidRequest(
                f"messages cannot be rendered by this model's chat template: {_first_line(error)}", field="messages"
            ) from error
        return self.encode(text, add_special_tokens=False)

    def new_stream(self, prompt_ids: Sequence[int], *, skip_special_tokens: bool = True) -> Detokenizer:
        """Start the text of one answer, after `prompt_ids`."""
        return Detokenizer(self._backend, prompt_ids[-CONTEXT_TOKENS:], skip_special_tokens)


class Detokenizer:
    """Token ids in, text pieces out; half characters are held back until they are whole."""

    def __init__(self, backend: Any, context_ids: Sequence[int], skip_special_tokens: bool) -> None:
        self._backend = backend
        self._skip = skip_special_tokens
        self._stream = DecodeStream(ids=list(context_ids), skip_special_tokens=skip_special_tokens)
        self._unflushed: list[int] = []

    def push(self, token_id: int) -> str:
        """Give the text that this token completes; empty when it completes none."""
        piece: str | None = self._stream.step(self._backend, token_id)
        if piece is None:
            self._unflushed.append(token_id)
            return ""
        self._unflushed.clear()
        return piece

    def flush(self) -> str:
        """Give what is left at the end: an answer may stop inside a character."""
        if not self._unflushed:
            return ""
        text: str = self._backend.decode(self._unflushed, skip_special_tokens=self._skip)
        self._unflushed.clear()
        return text


class StopMatcher:
    """Find the first stop string in a stream of text pieces, holding back what could still become one."""

    def __init__(self, stops: Sequence[str], *, include_in_output: bool) -> None:
        self._stops = tuple(stops)
        self._include = include_in_output
        self._held = ""
        self._reach = max((len(stop) for stop in stops), default=1) - 1

    def push(self, piece: str) -> tuple[str, str | None]:
        """Take a piece; give the text that is safe to show, and the stop string if one has come."""
        if not self._stops:
            return piece, None
        text = self._held + piece
        start, stop = min(
            ((at, stop) for stop in self._stops if (at := text.find(stop)) >= 0), default=(-1, None)
        )
        if stop is not None:
            self._held = ""
            return text[: start + len(stop)] if self._include else text[:start], stop
        keep = self._longest_tail(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """Give what was held back, at an end that no stop string made."""
        held, self._held = self._held, ""
        return held

    def _longest_tail(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        for size in range(min(self._reach, len(text)), 0, -1):
            tail = text[-size:]
            if any(stop.startswith(tail) for stop in self._stops):
                return size
        return 0


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".") + "."
