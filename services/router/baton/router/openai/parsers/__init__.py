"""Parsers of answers by name. A new one is a file here and a line in `PARSERS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from baton.router.openai.parsers.first_call import FirstCall
from baton.router.openai.parsers.hermes import HermesParser
from baton.router.openai.parts import AnswerParser

PARSERS: Mapping[str, Callable[[], AnswerParser]] = {"hermes": HermesParser}
"""Each makes the parser of one choice."""


def new_parser_of(name: str, *, one_call: bool) -> Callable[[], AnswerParser]:
    """Return what makes a choice's parser, one that shows at most one call if asked."""
    new_parser = PARSERS[name]
    return (lambda: FirstCall(new_parser())) if one_call else new_parser
