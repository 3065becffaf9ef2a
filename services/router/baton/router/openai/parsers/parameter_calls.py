"""Calls whose arguments stand one by one between tags, as bare text: Qwen3-Coder, GLM-4.5, MiniMax-M2, Seed-OSS and others.

Each argument gets the type that the function's schema gives it, and is shown when it is whole.

    OUTSIDE ── opens ──▶ BLOCK ── function ──▶ NAME ──▶ FUNCTION ── parameter ──▶ KEY ──▶ VALUE ── its end ──▶ FUNCTION
       ◀──── closes ───────┘  ◀──────── end of the function ────────┘
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import orjson

from baton.router.openai.parsers.call_parts import CallParts, Offered
from baton.router.openai.parsers.tag_machine import TagMachine, Tags
from baton.router.openai.parsers.typed_values import typed_value
from baton.router.openai.parts import Part

_MAX_NAME_LEN = 512
_KEY_ENDS = re.compile(r'["<]')


@dataclass(frozen=True, slots=True)
class ParameterForm:
    """How one family writes calls."""

    opens: str
    closes: str
    parameter: tuple[str, str]
    """What stands around a parameter's name."""
    ends_value: str
    function: tuple[str, str] | None = None
    """What stands around a function's name; none: it is what stands before the first parameter."""
    ends_function: str = ""
    """None: the block ends with its function."""
    may_lack_opens: bool = False
    """Some of the family's models leave out the opening tag."""
    skips: tuple[str, ...] = ()
    """Tags around blocks that say nothing."""
    marks: tuple[str, ...] = ()
    """Special tokens of which the others are made."""


class ParameterCalls(TagMachine):
    """Text and calls of one form."""

    def __init__(self, form: ParameterForm, offered: Offered) -> None:
        super().__init__()
        self.marks = (form.opens, form.closes, *form.skips, *form.marks)
        self._form = form
        self._offered = offered
        self._calls = CallParts(streams=offered.streams)
        self._read: list[str] = []
        """A name or a value, as far as it has come."""
        self._function = self._key = ""
        self._num_values = 0
        self._has_calls = self._lacks_opens = False
        """Of this block."""

        begins, ends_name = form.function or ("", form.parameter[0])
        ends_function = form.ends_function or form.closes
        self._outside = Tags(form.opens, *form.skips, *([begins] if form.may_lack_opens else ()))
        self._behind = Tags(form.opens, *form.skips, begins, form.closes) if form.may_lack_opens else self._outside
        """Outside, behind a function that had no opening tag, and may have the closing one."""
        self._block = Tags(begins, form.closes)
        self._name = Tags(ends_name, ends_function)
        self._inside = Tags(form.parameter[0], ends_function)
        self._in_key = Tags(form.parameter[1], ends_function)
        self._value = Tags(form.ends_value)
        self.tags = self._outside

    def on_text(self, text: str) -> int | None:
        tags = self.tags
        if tags is self._outside or tags is self._behind:
            self._calls.say(text)
        elif tags is self._block or tags is self._inside:
            return self._between(text)
        else:
            self._calls.hold(text)
            self._read.append(text)
            if self._calls.is_too_long:
                self._fail()
        return None

    def on_tag(self, tag: str) -> None:
        form, tags = self._form, self.tags
        if tags is self._outside or tags is self._behind:
            self._open(tag)
            return
        self._calls.hold(tag)
        if tags is self._value:
            self._add(self._take())
            self.tags = self._inside
        elif tag == form.parameter[1] and tags is self._in_key:
            self._key = self._take().strip()
            self.tags = self._value
        elif tags is self._block:
            self._leave() if tag == form.closes else self._enter(self._name)
        elif tags is self._name and (form.function is None or tag == form.function[1]):
            self._begin()
            if tag == form.parameter[0]:
                self.tags = self._in_key
            elif tag == form.closes:
                self._end()
        elif tags is self._inside:
            self._enter(self._in_key) if tag == form.parameter[0] else self._end()
        else:
            self._fail()

    def on_end(self) -> None:
        """Some models leave out the last tags. A value that is cut has no end, so it is not shown."""
        if self.tags is self._inside and self._calls.is_begun:
            self._end()
        elif self.tags is self._block and self._has_calls:
            self._leave()
        elif self.tags is not self._outside and self.tags is not self._behind:
            self._fail()

    def take_parts(self) -> list[Part]:
        return self._calls.take()

    def _open(self, tag: str) -> None:
        form = self._form
        if tag in form.skips or tag == form.closes:
            self.tags = self._outside
            return
        self._calls.hold(tag)
        self._has_calls = False
        self._lacks_opens = tag != form.opens
        self._enter(self._name if self._lacks_opens or form.function is None else self._block)

    def _enter(self, tags: Tags) -> None:
        self._read = []
        self.tags = tags

    def _take(self) -> str:
        read, self._read = "".join(self._read), []
        return read

    def _begin(self) -> None:
        self._function = self._take().strip()
        if not 0 < len(self._function) <= _MAX_NAME_LEN:
            self._fail()
            return
        self._num_values = 0
        self._calls.begin(self._function)
        self.tags = self._inside

    def _add(self, value: str) -> None:
        key, *kind = _KEY_ENDS.split(self._key, maxsplit=1)
        value = value.removeprefix("\n").removesuffix("\n")
        if 'string="true"' in "".join(kind):  # DeepSeek says behind the name whether a value is a string
            written = orjson.dumps(value).decode()
        else:
            properties = self._offered.parameters.get(self._function, {}).get("properties")
            schema = properties.get(key) if isinstance(properties, dict) else None
            written = typed_value(value, schema)
        before = ", " if self._num_values else "{"
        self._num_values += 1
        self._calls.more(f"{before}{orjson.dumps(key).decode()}: {written}")

    def _end(self) -> None:
        """End the function."""
        if not self._calls.is_begun:
            return  # its name was none
        self._calls.more("}" if self._num_values else "{}")
        self._calls.end()
        self._has_calls = True
        if self._lacks_opens:
            self.tags = self._behind
        elif self._form.function is None:
            self.tags = self._outside
        else:
            self.tags = self._block

    def _leave(self) -> None:
        """End the block; one without calls is text."""
        self._calls.drop() if self._has_calls else self._calls.give_up()
        self.tags = self._outside

    def _between(self, text: str) -> int | None:
        """Take what stands between tags, which should be white space; return how much of it was looked at."""
        if self._calls.is_begun and self._calls.streams:
            self._calls.say(text)
            return None
        space_len = len(text) - len(text.lstrip())
        self._calls.hold(text[: space_len + 1])
        if space_len == len(text):
            return None
        self._fail()
        return space_len + 1

    def _fail(self) -> None:
        """What is held is no call."""
        self._calls.give_up()
        self.tags = self._outside
