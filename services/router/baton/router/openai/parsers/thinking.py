"""What a model thinks before it answers, between tags: told apart from the answer, which another parser may read on.

Only an answer that begins with the opening tag has thoughts, or one whose prompt ends inside of them. Later tags are text:
a model may talk about them. White space around thoughts is the form's, not theirs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

from baton.router.openai.parsers.call_parts import Offered
from baton.router.openai.parsers.tag_machine import NO_TAGS, TagMachine, Tags
from baton.router.openai.parsers.trimmed import Trimmed
from baton.router.openai.parts import AnswerParser, NewParser, Part, Reasoning
from baton.thinking import Thinking

Place = Literal["before", "inside", "behind"]
"""Where an answer begins: before thoughts that it may have, inside of them, or behind."""


@dataclass(frozen=True, slots=True)
class ThinkingForm:
    """How one model family writes its thoughts."""

    opens: tuple[str, ...] = ("<think>",)
    closes: tuple[str, ...] = ("</think>",)
    begins_inside: bool = False
    """An answer begins with thoughts although nothing opens them, unless the prompt has closed them."""
    ends_before: tuple[str, ...] = ()
    """What ends thoughts too, and belongs to the answer."""

    def new_parser(
        self, calls: NewParser | None, offered: Offered | None, prompt: str, *, continues: bool = False
    ) -> NewParser | None:
        """Return what makes a choice's parser, behind thoughts that of `calls`; None where all is text."""
        place = self.place(prompt, continues=continues)
        return calls if place == "behind" else functools.partial(_new_parser, self, calls, is_inside=place == "inside")

    def thinking(self, prompt: str, *, continues: bool = False) -> Thinking | None:
        """Return what a worker needs to know of the thoughts of an answer; None where there can be none."""
        place = self.place(prompt, continues=continues)
        if place == "behind":
            return None
        return Thinking(opens=self.opens, closes=self.closes, ends_before=self.ends_before, is_open=place == "inside")

    def place(self, prompt: str, *, continues: bool = False) -> Place:
        """Return where an answer begins, by the end of its prompt; `continues` if that is an answer which has begun."""
        prompt = prompt.rstrip()
        if continues:
            opened, closed = (max(map(prompt.rfind, tags)) for tags in (self.opens, self.closes))
            return "inside" if opened > closed else "behind"
        if prompt.endswith(self.closes):
            return "behind"
        return "inside" if self.begins_inside or prompt.endswith(self.opens) else "before"


def _new_parser(form: ThinkingForm, calls: NewParser | None, *, is_inside: bool) -> AnswerParser:
    return ThinkingParser(form, None if calls is None else calls(), is_inside=is_inside)


class ThinkingParser(TagMachine):
    """Thoughts, and after them what `answer` makes of the rest; without it that is text."""

    def __init__(self, form: ThinkingForm, answer: AnswerParser | None, *, is_inside: bool) -> None:
        super().__init__()
        self.marks = (*form.opens, *form.closes, *(() if answer is None else answer.marks))
        self._answer = answer
        self._opening, self._closing = Tags(*form.opens), Tags(*form.closes, *form.ends_before)
        self._ends_before = form.ends_before
        self._parts: list[Part] = []
        self._thought = Trimmed()
        self._space = ""
        """White space before an answer, which is shown only if that follows."""
        self._is_answering = False
        """Whether any of the answer has come."""
        self._token_id = -1
        self.tags = self._closing if is_inside else self._opening

    def push(self, text: str, token_id: int) -> list[Part]:
        self._token_id = token_id
        return super().push(text, token_id)

    def on_text(self, text: str) -> None:
        if self.tags is self._closing:
            self._think(text)
        elif self._is_answering:
            self._say(text)
        else:
            self._begin(text)

    def on_tag(self, tag: str) -> None:
        self._space = ""
        if self.tags is self._opening:
            self.tags = self._closing
            return
        self.tags = NO_TAGS
        if tag in self._ends_before:
            self._is_answering = True
            self._say(tag)

    def on_end(self) -> None:
        if self.tags is self._opening:
            self._say(self._space)
        if self._answer is not None:
            self._parts += self._answer.finish()

    def take_parts(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts

    def _think(self, text: str) -> None:
        thought = self._thought.push(text)
        if thought:
            self._parts.append(Reasoning(thought))

    def _begin(self, text: str) -> None:
        """Take the first of the answer: white space behind thoughts is not shown, and may stand before them."""
        text = self._space + text
        if not text.strip():
            self._space = text
            return
        self._is_answering = True
        self._space = ""
        was_before = self.tags is self._opening
        self.tags = NO_TAGS
        self._say(text if was_before else text.lstrip())

    def _say(self, text: str) -> None:
        if self._answer is not None:
            self._parts += self._answer.push(text, self._token_id)
        elif text:
            self._parts.append(text)
