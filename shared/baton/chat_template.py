"""Chat templates: a conversation to the text that the model was trained on. Jinja2's immutable sandbox, nothing else.

Renders what `transformers` renders, without importing it (it would bring torch along): same environment, same
filters, same handling of a final message to continue. A sandbox bounds what a template can reach, not how long it
runs: who renders for strangers does so in a process that can be ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class TemplateRefused(ValueError):
    """The template does not take these messages; the text says why."""


class ChatTemplate:
    """One compiled template with the special tokens that it may name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile.

        Raises:
            TemplateRefused: the template is not valid Jinja.
        """
        self.source = source
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateRefused(f"the chat template is not valid: {error}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """Write a conversation as the model's text.

        Raises:
            TemplateRefused: the template raised, or nothing is there to continue.
        """
        chat: list[dict[str, Any]] = [_with_reasoning(_plain(message)) for message in messages]
        final = _mark_final(chat, self.source) if continue_final_message else None
        try:
            own = {"messages": chat, "tools": _plain(tools or None), "documents": None}
            own["add_generation_prompt"] = add_generation_prompt
            text = self._template.render(self._special_tokens | own | _plain(kwargs))
        except Exception as error:  # templates raise whatever they like
            raise TemplateRefused((str(error).strip() or type(error).__name__).splitlines()[0]) from error
        return text if final is None else _cut_at_mark(text, final)


def _environment() -> ImmutableSandboxedEnvironment:
    extensions = [_GenerationTag, loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=lambda form: datetime.now().strftime(form),
        dict=_TemplateDict(),
        namespace=_TemplateNamespace,
    )
    return environment


class _GenerationTag(Extension):
    """Let `{% generation %}` pass: it marks text for training and shows nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _TemplateDict:
    """`dict` for templates, without the type's attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _TemplateNamespace(Namespace):
    """A namespace that stores no underscored names, so none of Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # without a name for itself, so that a template may use any
        self, *rest = args
        Namespace.__init__(self)
        for name, value in dict(*rest, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace takes no underscored name, got {name!r}")
        Namespace.__setitem__(self, name, value)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which models have not seen."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _plain(value: Any) -> Any:
    """Rebuild a value of plain JSON types: methods of rich objects are nothing for a template."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    return f"<{type(value).__name__}>"


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Put a message's reasoning under each name that templates read."""
    reasoning = next((message[key] for key in _REASONING_FIELDS if message.get(key) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _mark_final(chat: list[dict[str, Any]], source: str) -> str:
    """Mark the end of the last message's text, so that all that the template adds after it can be cut."""
    content = chat[-1].get("content") if chat else None
    if content is None or "content" not in source:
        raise TemplateRefused("there is no content in the final message to continue")
    if isinstance(content, str):
        chat[-1]["content"] = content + _TAG
        return content
    for part in reversed(content):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            final: str = part["text"]
            part["text"] = final + _TAG
            return final
    raise TemplateRefused("there is no text in the final message to continue")


def _cut_at_mark(text: str, final: str) -> str:
    at = text.rfind(_TAG.strip())
    if at < 0 or final.strip() not in text:
        raise TemplateRefused("the chat template does not show the final message as it is, so it cannot be continued")
    if text[at : at + len(_TAG)] == _TAG:
        return text[:at]
    return text[:at].rstrip()  # the template trims messages
