"""AnswerForms: how this router's model writes thoughts and calls, and the parser of each request's answers.

Forms of others are found as entry points of installed packages: of the group `baton.tool_parsers` a `NewToolParser`, of
`baton.reasoning_parsers` a `ReasoningForm`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import TypeVar

import msgspec

from baton.errors import ConfigError, InvalidRequest, UnsupportedFeature, unsupported
from baton.protocol import SamplingParams
from baton.requests.chat import ChatRequest
from baton.requests.structured import in_field
from baton.router.config import RouterConfig
from baton.router.openai.parsers.call_parts import Offered
from baton.router.openai.parsers.first_call import FirstCall
from baton.router.openai.parsers.forced_calls import new_forced_parser
from baton.router.openai.parsers.reasoning_forms import REASONING_FORMS, ReasoningForm, reasoning_form_of
from baton.router.openai.parsers.strict_calls import strict_form
from baton.router.openai.parsers.thinking import ThinkingForm
from baton.router.openai.parsers.tool_forms import TOOL_PARSERS, NewToolParser, tool_form_of
from baton.router.openai.parts import AnswerParser, NewParser
from baton.structured_outputs import StructuredOutputs
from baton.text import Tokenizer

_TAIL, _LONG_TAIL = 32, 2048
"""Tokens of a prompt's end that tell whether its answer begins with thoughts; of one that ends with an answer's beginning."""
_Form = TypeVar("_Form")


class AnswerForms:
    """How one model's answers are read."""

    def __init__(self, config: RouterConfig, tokenizer: Tokenizer) -> None:
        """Choose the forms: those that the flags name, or those that the chat template speaks of.

        Raises:
            ConfigError: there is no form of such a name.
        """
        self._tokenizer = tokenizer
        reasoning, tools = config.reasoning_parser, config.tool_call_parser
        if reasoning == "auto":
            reasoning = reasoning_form_of(_template(tokenizer, with_tools=False))
        if tools == "auto":
            tools = tool_form_of(_template(tokenizer, with_tools=True))
        self._family = tools
        self.thinking: ReasoningForm | None = _named(reasoning, REASONING_FORMS, "reasoning_parser")
        self.calls: NewToolParser | None = _named(tools, TOOL_PARSERS, "tool_call_parser")

    def of(
        self, request: ChatRequest, prompt_ids: Sequence[int], params: SamplingParams
    ) -> tuple[SamplingParams, NewParser | None]:
        """Return what makes the parsers of a request's choices, None where all is text; and its parameters.

        A form that the answer must have begins behind thoughts, whether the prompt opens them or the model does.

        Raises:
            InvalidRequest: a strict function has a schema that is too long.
            UnsupportedFeature: thoughts have a budget, and there are no marks by which they are told.
        """
        new_calls, form = self._calls_of(request), params.structured_outputs
        is_whole_answer = form is not None
        if form is None and new_calls is not None and not request.use_beam_search:
            form = self._strict_form(request)  # in which text is free
            params = params if form is None else params.replace(structured_outputs=form)
        offered = None if new_calls is None else _offered(request)
        calls = None if new_calls is None or offered is None else functools.partial(new_calls, offered)
        new_parser: NewParser | None = calls
        if self.thinking is not None:
            continues = bool(request.continue_final_message)
            tail = prompt_ids[-(_LONG_TAIL if continues else _TAIL) :]
            prompt = self._tokenizer.decode(tail, skip_special_tokens=False)
            if isinstance(self.thinking, ThinkingForm) or not is_whole_answer:
                new_parser = self.thinking.new_parser(calls, offered, prompt, continues=continues)
            params = self._with_thinking(request, params, prompt)
        elif request.thinking_budget is not None:
            raise self._no_budget(request.thinking_budget)
        if new_parser is not None and offered is not None and request.parallel_tool_calls is False:
            new_parser = functools.partial(_one_call, new_parser)
        return params, new_parser

    def _strict_form(self, request: ChatRequest) -> StructuredOutputs | None:
        try:
            return strict_form(self._family, [tool.function for tool in request.tools or ()])
        except InvalidRequest as error:
            raise in_field("tools", error) from None

    def _calls_of(self, request: ChatRequest) -> NewToolParser | None:
        forced = request.forced_calls
        if forced is not None:
            return functools.partial(new_forced_parser, forced)
        return self.calls if request.shows_tools else None

    def _with_thinking(self, request: ChatRequest, params: SamplingParams, prompt: str) -> SamplingParams:
        """Say how thoughts are told, where a form begins behind them or they have a budget."""
        budget = request.thinking_budget
        if not isinstance(self.thinking, ThinkingForm):
            if budget is not None:
                raise self._no_budget(budget)
            return params
        thinking = self.thinking.thinking(prompt, continues=bool(request.continue_final_message))
        if thinking is None or (params.structured_outputs is None and budget is None):
            return params
        return params.replace(thinking=msgspec.structs.replace(thinking, budget=budget))

    def _no_budget(self, budget: int) -> UnsupportedFeature:
        reason = "of this model no marks are known by which its thoughts begin and end"
        way_out = "Leave it out, or serve with a --reasoning-parser that has such."
        return unsupported("thinking_token_budget", budget, reason, way_out)


def _one_call(new_parser: NewParser) -> AnswerParser:
    return FirstCall(new_parser())


def _offered(request: ChatRequest) -> Offered:
    functions = [tool.function for tool in request.tools or ()]
    return Offered({each.name: each.parameters or {} for each in functions}, bool(request.stream))


def _named(name: str, known: Mapping[str, _Form], field: str) -> _Form | None:
    """Return the form of this name, ours or an installed one; None for none."""
    if name in ("none", ""):
        return None
    if name in known:
        return known[name]
    group = f"baton.{field.replace('call_', '')}s"
    for plugin in entry_points(group=group, name=name):
        form: _Form = plugin.load()
        return form
    names = ", ".join(sorted({*known, *(plugin.name for plugin in entry_points(group=group))}))
    raise ConfigError(f"{field}={name!r} is not known: it must be auto, none, or one of {names}.")


def _template(tokenizer: Tokenizer, *, with_tools: bool) -> str:
    try:
        return tokenizer.chat_templates.source(with_tools=with_tools)
    except InvalidRequest:  # there is none, so there are no conversations
        return ""
