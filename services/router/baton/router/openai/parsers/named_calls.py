"""Calls whose name stands before their JSON arguments, each between tags: DeepSeek V3, Kimi K2, Mistral from 2025 on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from baton.router.openai.parsers.call_parts import CallParts, Offered
from baton.router.openai.parsers.tag_machine import TagMachine, Tags
from baton.router.openai.parsers.trimmed import Trimmed
from baton.router.openai.parts import Part

_MAX_NAME_LEN = 512


def _as_it_is(head: str) -> tuple[str, str | None]:
    return head, None


@dataclass(frozen=True, slots=True)
class NamedForm:
    """How one family writes calls."""

    opens: str
    middle: str
    """Between name and arguments."""
    closes: tuple[str, ...]
    skips: tuple[str, ...] = ()
    """Tags around calls that say nothing."""
    marks: tuple[str, ...] = ()
    """Special tokens of which the others are made."""
    read_head: Callable[[str], tuple[str, str | None]] = _as_it_is
    """Returns the function's name and the call's id of what stands before the arguments."""


class NamedCalls(TagMachine):
    """Text and calls of one form. Arguments are shown as they come; of a whole answer only if they are JSON."""

    def __init__(self, form: NamedForm, offered: Offered) -> None:
        super().__init__()
        self.marks = (form.opens, form.middle, *form.closes, *form.skips, *form.marks)
        self._form = form
        self._calls = CallParts(streams=offered.streams)
        self._outside, self._in_head = Tags(form.opens, *form.skips), Tags(form.middle, *form.closes)
        self._in_arguments = Tags(*form.closes)
        self._head = ""
        self._arguments = Trimmed()
        self.tags = self._outside

    def on_text(self, text: str) -> None:
        if self.tags is self._outside:
            self._calls.say(text)
            return
        self._calls.hold(text)
        if self.tags is self._in_arguments:
            self._argue(text)
        elif len(self._head) <= _MAX_NAME_LEN:
            self._head += text
        if self._calls.is_too_long:
            self._calls.give_up()
            self.tags = self._outside

    def on_tag(self, tag: str) -> None:
        if self.tags is self._outside:
            if tag == self._form.opens:
                self._calls.hold(tag)
                self._head = ""
                self.tags = self._in_head
            return
        self._calls.hold(tag)
        if self.tags is self._in_head and tag == self._form.middle:
            self._begin()
        else:
            self._end()

    def on_end(self) -> None:
        if self.tags is not self._outside:
            self._end()

    def take_parts(self) -> list[Part]:
        return self._calls.take()

    def _begin(self) -> None:
        name, call_id = self._form.read_head(self._head.strip())
        self._arguments = Trimmed()
        if name and len(self._head) <= _MAX_NAME_LEN:
            self._calls.begin(name, call_id)
        self.tags = self._in_arguments

    def _argue(self, text: str) -> None:
        if not self._calls.is_begun:
            return
        arguments = self._arguments.push(text)
        if arguments:
            self._calls.more(arguments)

    def _end(self) -> None:
        self.tags = self._outside
        if self._calls.is_begun and not self._arguments.has_begun:
            self._calls.more("{}")
        self._calls.end_as_written()
