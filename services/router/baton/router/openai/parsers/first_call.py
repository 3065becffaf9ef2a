"""One call at most, whatever family's parser reads the text: `parallel_tool_calls: false`."""

from __future__ import annotations

from baton.router.openai.parts import AnswerParser, CallArguments, CallBegins, Part


class FirstCall:
    """A parser's parts without those of a second call and later ones."""

    def __init__(self, parser: AnswerParser) -> None:
        self._parser = parser
        self.marks = parser.marks

    def push(self, text: str, token_id: int) -> list[Part]:
        return _without_later_calls(self._parser.push(text, token_id))

    def finish(self) -> list[Part]:
        return _without_later_calls(self._parser.finish())


def _without_later_calls(parts: list[Part]) -> list[Part]:
    return [part for part in parts if not (isinstance(part, (CallBegins, CallArguments)) and part.index > 0)]
