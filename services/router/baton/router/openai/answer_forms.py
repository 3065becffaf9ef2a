"""AnswerForms: how this router's model writes thoughts and calls, and the parser of each request's answers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from baton.errors import ConfigError, InvalidRequest
from baton.requests.chat import ChatRequest
from baton.router.config import RouterConfig
from baton.router.openai.parsers import new_parser_of
from baton.router.openai.parsers.reasoning_forms import REASONING_FORMS, reasoning_form_of
from baton.router.openai.parsers.thinking import ThinkingForm, ThinkingParser
from baton.router.openai.parts import AnswerParser
from baton.text import Tokenizer

NewParser = Callable[[], AnswerParser]
"""Makes the parser of one choice."""
_TAIL, _LONG_TAIL = 32, 2048
"""Tokens of a prompt's end that tell whether its answer begins with thoughts; of one that ends with an answer's beginning."""


class AnswerForms:
    """How one model's answers are read."""

    def __init__(self, config: RouterConfig, tokenizer: Tokenizer) -> None:
        """Choose the forms: those that the flags name, or those that the chat template speaks of.

        Raises:
            ConfigError: there is no form of such a name.
        """
        self._tokenizer = tokenizer
        self.thinking = _thinking_form(config.reasoning_parser, _template(tokenizer, with_tools=False))

    def new_parser(self, request: ChatRequest, prompt_ids: Sequence[int]) -> NewParser | None:
        """Return what makes the parsers of a request's choices; None where all is text."""
        one_call = request.parallel_tool_calls is False
        calls = new_parser_of("hermes", one_call=one_call) if request.shows_tools else None
        if self.thinking is None:
            return calls
        continues = bool(request.continue_final_message)
        tail = prompt_ids[-(_LONG_TAIL if continues else _TAIL) :]
        prompt = self._tokenizer.decode(tail, skip_special_tokens=False)
        place = self.thinking.place(prompt, continues=continues)
        if place == "behind":
            return calls
        return functools.partial(_thinking_parser, self.thinking, calls, is_inside=place == "inside")


def _thinking_parser(form: ThinkingForm, calls: NewParser | None, *, is_inside: bool) -> AnswerParser:
    return ThinkingParser(form, None if calls is None else calls(), is_inside=is_inside)


def _thinking_form(name: str, template: str) -> ThinkingForm | None:
    if name == "auto":
        name = reasoning_form_of(template) or "none"
    if name in ("none", ""):
        return None
    if name not in REASONING_FORMS:
        known = ", ".join(sorted(REASONING_FORMS))
        raise ConfigError(f"reasoning_parser={name!r} is not known: it must be auto, none, or one of {known}.")
    return REASONING_FORMS[name]


def _template(tokenizer: Tokenizer, *, with_tools: bool) -> str:
    try:
        return tokenizer.chat_templates.source(with_tools=with_tools)
    except InvalidRequest:  # there is none, so there are no conversations
        return ""
