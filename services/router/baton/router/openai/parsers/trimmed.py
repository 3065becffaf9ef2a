"""Trimmed: text without the white space around it, however it comes in pieces."""

from __future__ import annotations


class Trimmed:
    """White space at the end is kept until more follows, and belongs to the text then."""

    def __init__(self) -> None:
        self.has_begun = False
        """Whether anything but white space has come."""
        self._space = ""

    def push(self, text: str) -> str:
        """Take a piece; return what is certain by now."""
        text = self._space + text
        if not self.has_begun:
            text = text.lstrip()
        certain = text.rstrip()
        self._space = text[len(certain) :]
        self.has_begun |= bool(certain)
        return certain
