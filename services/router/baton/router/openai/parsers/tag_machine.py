"""TagMachine: text cut at tags, however it comes in pieces. What a parser of answers stands on.

Each character is looked at once for the tags that count where it stands, so a parser takes time by the length of its
text, and keeps no more of it than could still become a tag.
"""

from __future__ import annotations

import re
from functools import cached_property

from baton.router.openai.parts import Part
from baton.text import held_back


class Tags:
    """Tags that count at one place; none of them begins another."""

    def __init__(self, *words: str) -> None:
        self.words = words

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.words)))

    def find(self, text: str, at: int) -> tuple[int, int] | None:
        """Return where the first tag behind `at` stands."""
        found = self._pattern.search(text, at) if self.words else None
        return None if found is None else found.span()

    def num_held(self, text: str, at: int) -> int:
        """Return how many characters of the end of `text`, behind `at`, may become a tag."""
        return held_back(text[at:], self.words) if self.words and at < len(text) else 0


NO_TAGS = Tags()


class TagMachine:
    """A parser that sees text and tags in turn. `tags` are those that count now."""

    marks: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.tags = NO_TAGS
        self._held = ""

    def push(self, text: str, token_id: int) -> list[Part]:
        """Take a piece; return what is certain by now."""
        if text:
            self._cut(self._held + text)
        return self.take_parts()

    def finish(self) -> list[Part]:
        """Return what was held back, at the end."""
        held, self._held = self._held, ""
        if held:
            self.on_text(held)
        self.on_end()
        return self.take_parts()

    def on_text(self, text: str) -> None:
        """Take text without tags. What follows it is cut by the tags that count then."""
        raise NotImplementedError

    def on_tag(self, tag: str) -> None:
        """Take one of `tags`."""
        raise NotImplementedError

    def on_end(self) -> None:
        """Take the end of the answer."""

    def take_parts(self) -> list[Part]:
        """Return the parts that are new, once."""
        raise NotImplementedError

    def _cut(self, text: str) -> None:
        at = 0
        while True:
            tags = self.tags
            found = tags.find(text, at)
            end = len(text) - tags.num_held(text, at) if found is None else found[0]
            if end > at:
                self.on_text(text[at:end])
                at = end
                if self.tags is not tags:
                    continue
            if found is None:
                break
            self.on_tag(text[found[0] : found[1]])
            at = found[1]
        self._held = text[at:]
