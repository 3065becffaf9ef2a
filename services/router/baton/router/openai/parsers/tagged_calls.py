"""Calls between tags, or as the whole of an answer: what most families write. Only tags and what stands between differ.

JSON calls of a stream are shown from their name on; other bodies are read when they are whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from baton.router.openai.parsers.call_parts import CallParts, Offered
from baton.router.openai.parsers.json_calls import JsonEnd, read_json_calls
from baton.router.openai.parsers.tag_machine import TagMachine, Tags
from baton.router.openai.parts import Part, new_call_id


@dataclass(frozen=True, slots=True)
class Head:
    """A call up to its arguments, which are an object."""

    pattern: re.Pattern[str]
    """Its first group is the name, a second one the call's id."""
    is_in_object: bool = True
    """The call is an object itself, which ends behind the arguments."""


JSON_HEAD = Head(
    re.compile(
        r"""[\s,;\[]*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"([^"\\]{1,256})"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)"""
    )
)
"""In the order in which models write it."""
_HEAD_LEN = 1024


@dataclass(frozen=True, slots=True)
class TaggedForm:
    """How one family writes calls."""

    opens: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()
    """None: calls go on to the next opening tag, or the end of the answer."""
    bare: str = ""
    """Characters of which one begins an answer that is calls, without a tag."""
    skips: tuple[str, ...] = ()
    """Tags within that say nothing."""
    read: Callable[[str], list[tuple[str, str]] | None] = read_json_calls
    """Returns the calls of a body, each a name and its arguments as JSON; None of one that holds anything else."""
    heads: tuple[Head, ...] = (JSON_HEAD,)
    """By which a call in a stream is known before its body is whole."""
    may_be: Callable[[str], bool] | None = None
    """Whether a text without a tag can still become calls, by its beginning."""
    marks: tuple[str, ...] = ()
    """Special tokens that stand in bodies."""
    new_id: Callable[[], str] = new_call_id


class TaggedCalls(TagMachine):
    """Text and calls of one form."""

    def __init__(self, form: TaggedForm, offered: Offered) -> None:
        super().__init__()
        self.marks = (*form.opens, *form.closes, *form.skips, *form.marks)
        self._form = form
        self._offered = offered
        self._calls = CallParts(streams=offered.streams, new_id=form.new_id)
        also_opens = form.opens if form.bare or not form.closes else ()
        self._outside, self._inside = Tags(*form.opens), Tags(*form.closes, *also_opens, *form.skips)
        self._may_be_bare = bool(form.bare)
        """Nothing but white space has come, and the form needs no tag."""
        self._is_bare = False
        self._space = ""
        self._body: list[str] = []
        self._body_len = 0
        self._has_calls = False
        """Calls of this body are shown already; what is left of it need be none."""
        self._begun: _BegunCall | None = None
        self.tags = self._outside

    def push(self, text: str, token_id: int) -> list[Part]:
        if self._may_be_bare and text:
            text = self._space + text
            if not text.strip():
                self._space = text
                return []
            self._begin(text)
        return super().push(text, token_id)

    def on_text(self, text: str) -> None:
        if self.tags is self._outside:
            self._calls.say(text)
            return
        while text:
            text = self._call_text(text)
        if self._calls.is_too_long or (self._is_bare and not self._can_be_calls()):
            self._calls.give_up()
            self._leave()

    def on_tag(self, tag: str) -> None:
        if tag in self._form.skips:
            self._calls.hold(tag)
            return
        if self.tags is self._inside:
            is_close = tag in self._form.closes
            self._close(tag if is_close else "")
            if is_close:
                return
        self._calls.hold(tag)
        self.tags = self._inside

    def on_end(self) -> None:
        if self._may_be_bare:
            self._calls.say(self._space)
        if self.tags is self._inside:  # some models end their answer in place of the closing tag
            self._close("")

    def take_parts(self) -> list[Part]:
        return self._calls.take()

    def _begin(self, text: str) -> None:
        self._may_be_bare = False
        if text.lstrip()[0] in self._form.bare:
            self._is_bare = True
            self.tags = self._inside

    def _call_text(self, text: str) -> str:
        """Take text of a body; return what is left of it behind a call that has ended in it."""
        if self._begun is not None:
            rest = self._begun.push(text)
            if rest is None:
                return ""
            self._begun = None
            self._calls.end()
            return rest
        self._calls.hold(text)
        may_be_named = self._body_len <= _HEAD_LEN
        self._body.append(text)
        self._body_len += len(text)
        return self._look_for_name() if may_be_named and self._offered.streams else ""

    def _look_for_name(self) -> str:
        body = "".join(self._body)
        for head in self._form.heads:
            named = head.pattern.match(body)
            if named is not None and named.end() <= _HEAD_LEN and self._is_offered(named[1]):
                self._body, self._body_len = [], 0
                self._has_calls = True
                self._calls.begin(*named.groups())
                self._begun = _BegunCall(self._calls, is_in_object=head.is_in_object)
                return body[named.end() :]
        return ""

    def _close(self, tag: str) -> None:
        """End the body, which is text if it cannot be read as calls."""
        body = "".join(self._body)
        if self._begun is not None:
            self._calls.end()
        elif self._has_calls and not body.strip(" \t\r\n,;]"):
            self._calls.drop()
        else:
            self._read(body, tag)
        self._leave()

    def _read(self, body: str, tag: str) -> None:
        read = self._form.read(body)
        if read is not None and all(self._is_offered(name) for name, _ in read):
            for name, arguments in read:
                self._calls.add(name, arguments)
        else:
            self._calls.hold(tag)
            self._calls.give_up()

    def _leave(self) -> None:
        self._body, self._body_len, self._begun = [], 0, None
        self._is_bare = self._has_calls = False
        self.tags = self._outside

    def _is_offered(self, name: str) -> bool:
        """Whether this is a call: without a tag, anything else may look like one."""
        return not self._is_bare or name in self._offered.parameters

    def _can_be_calls(self) -> bool:
        may_be = self._form.may_be
        is_late = self._has_calls or self._begun is not None or self._body_len > _HEAD_LEN
        return may_be is None or is_late or may_be("".join(self._body))


class _BegunCall:
    """The rest of a JSON call whose name is known: its arguments, and what else stands in its object."""

    def __init__(self, calls: CallParts, *, is_in_object: bool) -> None:
        self._calls = calls
        self._arguments, self._object = JsonEnd(), JsonEnd(1) if is_in_object else None
        self._is_told = False

    def push(self, text: str) -> str | None:
        """Take a piece; return what stands behind the call, if it ends."""
        at = 0
        if not self._is_told:
            end = self._arguments.push(text)
            self._calls.more(text[:end])
            if end is None:
                return None
            self._is_told, at = True, end
        end = at if self._object is None else self._object.push(text, at)
        return None if end is None else text[end:]
