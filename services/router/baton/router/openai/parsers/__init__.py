"""Parsers of answers by name. A new one is a file here and a line in `PARSERS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from baton.router.openai.parsers.hermes import HermesParser
from baton.router.openai.parts import AnswerParser

PARSERS: Mapping[str, Callable[[], AnswerParser]] = {"hermes": HermesParser}
"""Each makes the parser of one choice."""
