"""Chat templates: a conversation to the text that the model was trained on.

Renders what `transformers` renders, and what a template would lose beside that: content reaches it in the form that it
reads, and what it leaves out all the same is refused by name. A sandbox bounds what a template can reach, not how long
it runs: who renders for strangers does so in a process that can be ended.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jinja2

from baton.errors import InvalidRequest
from baton.template_habits import RoleHabit, TemplateHabits
from baton.template_sandbox import plain, template_environment
from baton.written_json import read_json, write_json

ContentFormat = Literal["auto", "string", "openai"]
"""How content reaches a template: as it reads it, as one text, or as parts."""

_FORMS: dict[str, tuple[bool, bool]] = {"string": (True, False), "openai": (False, True)}
"""Whether content may be text and whether it may be parts, where that is told and not found out."""
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_THOUGHT_ENDS = "</think>"


class TemplateRefused(InvalidRequest):
    """The template does not take these messages; the text says why."""


class ChatTemplate:
    """One compiled template with the special tokens that it may name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], content_format: ContentFormat = "auto") -> None:
        """Compile.

        Raises:
            TemplateRefused: the template is not valid Jinja.
        """
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._content_format = content_format
        self._habits = TemplateHabits(lambda messages, tools: self._write(messages, tools, {}))
        try:
            self._template = template_environment().from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateRefused(f"The chat template is not valid: {error}.", field="messages") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        documents: Sequence[Mapping[str, str]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Write a conversation as the model's text; `kwargs` are values that the template may read.

        Raises:
            TemplateRefused: the template raised, or leaves something out, or nothing is there to continue.
        """
        if tools and self._habits.drops_tools:
            way_out = "Leave them out, or serve with a template that has one"
            raise _left_out("tools", f"=a list of {len(tools)}", "has no place for tools", way_out)
        if documents and "documents" not in self.source:
            way_out = "Put their text into a message, or serve with a template that has one"
            raise _left_out("documents", f"=a list of {len(documents)}", "has no place for documents", way_out)
        chat = [self._message(index, message) for index, message in enumerate(messages)]
        final = _mark_final(chat, self.source) if continue_final_message else None
        own = {"add_generation_prompt": add_generation_prompt, "documents": plain(documents or None)}
        values = plain(kwargs or {}) | own
        shown_tools = plain(tools or None)
        text = self._write_or_refuse(chat, shown_tools, values)
        if unseen := list(_unseen(chat, text)):
            self._check_unseen(unseen, chat, shown_tools, values)
        return text if final is None else _cut_at_mark(text, final)

    def _write(self, chat: list[dict[str, Any]], tools: list[Any] | None, values: dict[str, Any]) -> str:
        own = {"messages": chat, "tools": tools, "documents": None, "add_generation_prompt": False}
        return self._template.render(self._special_tokens | own | values)

    def _write_or_refuse(self, chat: list[dict[str, Any]], tools: list[Any] | None, values: dict[str, Any]) -> str:
        try:
            return self._write(chat, tools, values)
        except Exception as error:  # templates raise whatever they like
            raise _cannot((str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")) from error

    def _message(self, index: int, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return a message in the form that the template reads.

        Raises:
            TemplateRefused: it leaves out such messages, or their calls.
        """
        message: dict[str, Any] = _with_reasoning(plain(given))
        role = message.get("role")
        if not isinstance(role, str):
            return message
        message["role"] = self._known_role(role)
        habit = self._habits.of_role(message["role"])
        if habit.is_dropped and any(text.strip() for text in _texts(message.get("content"))):
            way_out = "Send it under another role, or serve with a template that shows it"
            raise _left_out(f"messages[{index}].role", f"={role!r}", "leaves such messages out", way_out)
        if message.get("tool_calls"):
            message["tool_calls"] = self._calls(index, message["tool_calls"])
        message["content"] = self._content(message, habit)
        return message

    def _calls(self, index: int, calls: list[Any]) -> list[Any]:
        habit = self._habits.of_calls
        # a template that shows tools and not the calls of earlier turns was made so for its model
        if habit.are_dropped and self._habits.drops_tools:
            way_out = "Leave them out, or serve with a template that shows them"
            raise _left_out(f"messages[{index}].tool_calls", "", "leaves calls out", way_out)
        return [_with_arguments(call, habit.takes_text) for call in calls]

    def _known_role(self, role: str) -> str:
        """Return system for a developer whom the template does not show: the newer name of the same thing."""
        if role != "developer":
            return role
        habit = self._habits.of_role(role)
        return role if habit.takes_text or habit.takes_parts else "system"

    def _content(self, message: dict[str, Any], habit: RoleHabit) -> Any:
        content = message.get("content")
        takes_text, takes_parts = _FORMS.get(self._content_format, (habit.takes_text, habit.takes_parts))
        if content is None:
            return self._habits.of_calls.no_content if message.get("tool_calls") else ""
        if isinstance(content, str) and takes_parts and not takes_text:
            return [{"type": "text", "text": content}]
        if isinstance(content, list) and not takes_parts:
            texts = [part if isinstance(part, str) else part.get("text") for part in content]
            return "\n".join(texts) if all(isinstance(text, str) for text in texts) else content
        return content

    def _check_unseen(self, unseen: list[int], chat: list[dict[str, Any]], tools: Any, values: dict[str, Any]) -> None:
        """Tell what was left out from what was changed: a mark at the end of a message shows where its text went.

        Raises:
            TemplateRefused: a message was left out.
        """
        marked = [dict(message) for message in chat]
        marks = {index: f"quartz{index}zebra" for index in unseen}
        for index, mark in marks.items():
            marked[index]["content"] = _marked(chat[index]["content"], mark)
        text = self._write_or_refuse(marked, tools, values)
        for index, mark in marks.items():
            if text.count(mark) < len(_texts(chat[index]["content"])):
                way_out = "Put its text into a message that is shown, or serve with another template"
                raise _left_out(f"messages[{index}].content", "", "leaves it out where it stands", way_out)


def _unseen(chat: Sequence[Mapping[str, Any]], text: str) -> Iterator[int]:
    """Give the messages whose text does not stand in the rendered text, where it was looked for in order.

    Text beside calls is not looked for: many templates write a call in place of it.
    """
    at = 0
    for index, message in enumerate(chat):
        if message.get("tool_calls"):
            continue
        for piece in _texts(message.get("content")):
            # what a model thought is cut from earlier answers, as it should be
            wanted = piece.rpartition(_THOUGHT_ENDS)[2].strip() if message.get("role") == "assistant" else piece.strip()
            found = text.find(wanted, at)
            if found >= 0:
                at = found + len(wanted)
            elif wanted not in text and json.dumps(wanted, ensure_ascii=False)[1:-1] not in text:
                yield index
                break


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    return [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]


def _marked(content: Any, mark: str) -> Any:
    if isinstance(content, str):
        return content + mark
    return [part | {"text": part["text"] + mark} if _texts([part]) else part for part in content]


def _with_arguments(call: Any, as_text: bool) -> Any:
    """Return a call with its arguments as an object, which most templates take apart or write as JSON, or as JSON text."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    arguments = function.get("arguments") or {}
    if as_text and not isinstance(arguments, str):
        arguments = write_json(arguments, ensure_ascii=False)
    elif not as_text and isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):
            arguments = read_json(arguments)
    return call | {"function": function | {"arguments": arguments}}


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Put a message's reasoning under each name that templates read."""
    reasoning = next((message[key] for key in _REASONING_FIELDS if message.get(key) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _mark_final(chat: list[dict[str, Any]], source: str) -> str:
    """Mark the end of the last message's text, so that all that the template adds after it can be cut."""
    content = chat[-1].get("content") if chat else None
    if content is None or "content" not in source:
        raise _cannot("there is no content in the final message to continue")
    if isinstance(content, str):
        chat[-1]["content"] = content + _TAG
        return content
    for part in reversed(content):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            final: str = part["text"]
            part["text"] = final + _TAG
            return final
    raise _cannot("there is no text in the final message to continue")


def _cut_at_mark(text: str, final: str) -> str:
    at = text.rfind(_TAG.strip())
    if at < 0 or final.strip() not in text:
        raise _cannot("it does not show the final message as it is, so that cannot be continued")
    if text[at : at + len(_TAG)] == _TAG:
        return text[:at]
    return text[:at].rstrip()  # the template trims messages


def _left_out(field: str, value: str, what: str, way_out: str) -> TemplateRefused:
    return TemplateRefused(
        f"{field}{value} is not valid: this model's chat template {what}. {way_out} (--chat-template).", field=field
    )


def _cannot(reason: str) -> TemplateRefused:
    return TemplateRefused(f"messages cannot be rendered by this model's chat template: {reason}.", field="messages")
