"""gpt-oss answers: messages in channels, for thoughts (analysis), calls (commentary to a function) and the answer (final).

    <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>commentary to=functions.f json<|message|>{...}<|call|>

A prompt ends behind `<|start|>assistant`, so an answer begins within a message's head. The tokens that end an answer are no
part of its text.
"""

from __future__ import annotations

import functools
import re

from baton.router.openai.parsers.call_parts import CallParts, Offered
from baton.router.openai.parsers.tag_machine import TagMachine, Tags
from baton.router.openai.parts import NewParser, Part

_START, _CHANNEL, _CONSTRAIN, _MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_RECIPIENT = re.compile(r"\bto=([^\s<]{1,256})")
_CHANNEL_NAME = re.compile(re.escape(_CHANNEL) + r"\s*(\w+)")
_MAX_HEAD_LEN = 1024
_IN_HEAD = Tags(_MESSAGE)
_IN_BODY = Tags(*_ENDS, _START, _CHANNEL)


class HarmonyParser(TagMachine):
    """Thoughts, text and calls of one answer."""

    marks = (_START, _CHANNEL, _CONSTRAIN, _MESSAGE, *_ENDS)

    def __init__(self, offered: Offered | None, *, tells_thoughts: bool = True) -> None:
        """Show calls as text if nothing is offered, and thoughts if nobody `tells_thoughts`."""
        super().__init__()
        self._offered = offered
        self._tells_thoughts = tells_thoughts
        self._calls = CallParts(streams=offered is not None and offered.streams)
        self._head = ""
        """Of the message that comes."""
        self._has_channels = False
        self._thinks = self._has_thought = False
        self.tags = _IN_HEAD

    def on_text(self, text: str) -> int | None:
        if self.tags is _IN_BODY:
            self._take(text)
            return None
        room = _MAX_HEAD_LEN - len(self._head)
        self._head += text[:room]
        if len(text) <= room:
            return None
        self.tags = _IN_BODY  # it is no head
        self._take(self._head)
        return room

    def on_tag(self, tag: str) -> None:
        if self.tags is _IN_HEAD:
            self._has_channels = True
            if tag == _MESSAGE:
                self._read_head()
            return
        self._end_call()
        self._head = tag if tag == _CHANNEL else ""
        self.tags = _IN_HEAD

    def on_end(self) -> None:
        self._end_call()
        if self.tags is _IN_HEAD and not self._has_channels:
            self._calls.say(self._head)

    def take_parts(self) -> list[Part]:
        return self._calls.take()

    def _read_head(self) -> None:
        """Begin the message that the head tells of."""
        self.tags = _IN_BODY
        channel, recipient = _CHANNEL_NAME.search(self._head), _RECIPIENT.search(self._head)
        is_analysis = channel is not None and channel[1] == "analysis"
        self._thinks = is_analysis and self._tells_thoughts
        if recipient is not None and not is_analysis and self._offered is not None:
            self._calls.begin(recipient[1].removeprefix("functions."))
        elif self._thinks and self._has_thought:
            self._calls.think("\n")
        self._has_thought |= self._thinks

    def _take(self, text: str) -> None:
        if self._calls.is_begun:
            self._calls.hold(text)
            self._calls.more(text)
        elif self._thinks:
            self._calls.think(text)
        else:
            self._calls.say(text)

    def _end_call(self) -> None:
        if self._calls.is_begun:
            self._calls.end_as_written()


class HarmonyForm:
    """The form as one of thoughts."""

    def new_parser(
        self, calls: NewParser | None, offered: Offered | None, prompt: str, *, continues: bool = False
    ) -> NewParser | None:
        """Return what makes a choice's parser; it reads calls itself."""
        return None if continues else functools.partial(HarmonyParser, offered)
