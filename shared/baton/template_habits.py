"""What a chat template does with parts of content, with roles, tools and calls: seen in small conversations, rendered once.

A template tells none of this: one reads content as text alone, one as parts alone, and a role that it does not know is
dropped, printed or refused. Looking at its source for loops over content (as other servers do) misses loops in macros.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_MARK, _SECOND = "quartz7zebra", "jigsaw4fox"
"""Words that no template has, whole after any trimming and escaping."""
_PRINTED = re.compile(rf"""['"]text['"]\s*:\s*['"]{_MARK}""")
"""A part shown as Python or JSON prints it, not as its text."""
_Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class RoleHabit:
    """What becomes of one role's messages. A template that refuses them drops nothing."""

    takes_text: bool
    takes_parts: bool
    is_dropped: bool


@dataclass(frozen=True, slots=True)
class CallHabit:
    """What becomes of an assistant's calls, what stands for the content that such a message has not, and their arguments."""

    are_dropped: bool
    no_content: str | None = ""
    takes_text: bool = False
    """Arguments as JSON text, not as an object."""


class TemplateHabits:
    """Habits of one template, each found when first asked for."""

    def __init__(self, render: Callable[[_Messages, list[Any] | None], str]) -> None:
        """`render` writes messages and tools, and raises what the template raises."""
        self._render = render
        self.of_role = functools.cache(self._of_role)

    @functools.cached_property
    def drops_tools(self) -> bool:
        seen = self._see([_user()], _tools(_MARK)) + self._see([_message("system"), _user()], _tools(_MARK))
        return _is_dropped(seen)

    @functools.cached_property
    def of_calls(self) -> CallHabit:
        seen: list[str] = []
        for takes_text, no_content, tools in itertools.product((False, True), (None, ""), (None, _tools("f"))):
            texts = self._see([_user(), _call(_MARK, no_content, takes_text), _message("tool")], tools)
            if any(_MARK in text and "None" not in text for text in texts):
                return CallHabit(are_dropped=False, no_content=no_content, takes_text=takes_text)
            seen += texts
        return CallHabit(are_dropped=_is_dropped(seen))

    def _of_role(self, role: str) -> RoleHabit:
        texts = self._see_role(role, _MARK)
        parts = self._see_role(role, [{"type": "text", "text": text} for text in (_MARK, _SECOND)])
        return RoleHabit(
            takes_text=any(_MARK in text for text in texts),
            takes_parts=any(_MARK in text and _SECOND in text and not _PRINTED.search(text) for text in parts),
            is_dropped=_is_dropped(texts + parts),
        )

    def _see_role(self, role: str, content: Any) -> list[str]:
        """Render a message of a role where it may stand: some templates take tools' results only beside tools."""
        message = _message(role, content)
        if role in ("system", "developer"):
            return self._see([message, _user()])
        if role == "user":
            return self._see([message])
        if role == "assistant":
            return self._see([_user(), message, _user()])
        before = [_user(), _call("f", self.of_calls.no_content, self.of_calls.takes_text)]
        return self._see([*before, message]) + self._see([*before, message], _tools("f"))

    def _see(self, messages: _Messages, tools: list[Any] | None = None) -> list[str]:
        """Return the text in a list, which is empty if the template refuses."""
        try:
            return [self._render(messages, tools)]
        except Exception:  # templates raise whatever they like
            return []


def _is_dropped(seen: Sequence[str]) -> bool:
    return bool(seen) and not any(_MARK in text for text in seen)


def _message(role: str, content: Any = "x") -> dict[str, Any]:
    message = {"role": role, "content": content}
    return message | {"tool_call_id": _CALL_ID, "name": "f"} if role in ("tool", "function") else message


def _user() -> dict[str, Any]:
    return _message("user")


def _call(word: str, no_content: str | None, takes_text: bool) -> dict[str, Any]:
    """Return a call with a word in its name and arguments: some templates show only these, beside the call's id."""
    arguments = f'{{"x": "{word}"}}' if takes_text else {"x": word}
    call = {"id": _CALL_ID, "type": "function", "function": {"name": word, "arguments": arguments}}
    return {"role": "assistant", "content": no_content, "tool_calls": [call]}


_CALL_ID = "a1b2c3d4e"
"""Of nine letters and digits, as Mistral's templates demand."""


def _tools(name: str) -> list[Any]:
    parameters = {"type": "object", "properties": {"x": {"type": "string", "description": "x"}}, "required": ["x"]}
    return [{"type": "function", "function": {"name": name, "description": "x", "parameters": parameters}}]
