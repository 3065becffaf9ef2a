"""Calls that a request has forced: the answer is JSON, whatever the model's own form; `tool_choice.py` says which."""

from __future__ import annotations

from baton.requests.tool_choice import ForcedCalls
from baton.router.openai.parsers.call_parts import CallParts, Offered
from baton.router.openai.parsers.tagged_calls import TaggedCalls, TaggedForm
from baton.router.openai.parts import AnswerParser, Part

_LIST = TaggedForm(bare="[")


def new_forced_parser(forced: ForcedCalls, offered: Offered) -> AnswerParser:
    """Make the parser of one choice."""
    if forced.is_named:
        return NamedCall(forced.functions[0].name, streams=offered.streams)
    return TaggedCalls(_LIST, offered)


class NamedCall:
    """An answer that is one function's arguments."""

    marks = ()

    def __init__(self, name: str, *, streams: bool) -> None:
        self._name = name
        self._calls = CallParts(streams=streams)

    def push(self, text: str, token_id: int) -> list[Part]:
        if text and not self._calls.is_begun:
            self._calls.begin(self._name)
        if text:
            self._calls.more(text)
        return self._calls.take()

    def finish(self) -> list[Part]:
        if self._calls.is_begun:  # one that is cut stays a call, as far as it came
            self._calls.end()
        return self._calls.take()
