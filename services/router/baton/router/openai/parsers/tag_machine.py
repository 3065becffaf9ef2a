"""TagMachine: text cut at tags, however it comes in pieces. What a parser of answers stands on.

Each character is looked at once for the tags that count where it stands, so a parser takes time by the length of its
text, and keeps no more of it than could still become a tag.
"""

from __future__ import annotations

import re
from functools import cached_property

from baton.router.openai.parts import Part


class Tags:
    """Tags that count at one place; none of them begins another."""

    def __init__(self, *words: str) -> None:
        self.words = words

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.words)))

    @cached_property
    def _begins(self) -> re.Pattern[str]:
        return re.compile("|".join({re.escape(word[0]) for word in self.words}))

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.words), default=1)

    def find(self, text: str, at: int) -> tuple[int, int] | None:
        """Return where the first tag behind `at` stands."""
        found = self._pattern.search(text, at) if self.words else None
        return None if found is None else found.span()

    def num_held(self, text: str, at: int) -> int:
        """Return how many characters of the end of `text`, behind `at`, may become a tag."""
        if self.words:
            for found in self._begins.finditer(text, max(at, len(text) - self._longest + 1)):
                end = text[found.start() :]
                if any(word.startswith(end) for word in self.words):
                    return len(end)
        return 0


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
        while held:
            taken = self.on_text(held)
            held = "" if taken is None else held[taken:]
        self.on_end()
        return self.take_parts()

    def on_text(self, text: str) -> int | None:
        """Take text without tags, or so many characters of it: what follows is cut by the tags that count then."""
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
                taken = self.on_text(text[at:end])
                at = end if taken is None else at + taken
                if self.tags is not tags:
                    continue
            if found is None:
                break
            self.on_tag(text[found[0] : found[1]])
            at = found[1]
        self._held = text[at:]
