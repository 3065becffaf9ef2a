"""The chat templates that a model comes with, by name, and which of them renders a conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from baton.chat_template import ChatTemplate, ContentFormat
from baton.errors import ConfigError, InvalidRequest, refuse

TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja")
_DEFAULT, _FOR_TOOLS = "default", "tool_use"


class ChatTemplates:
    """One model's templates, compiled when first used."""

    def __init__(
        self,
        sources: Mapping[str, str],
        special_tokens: Mapping[str, str],
        *,
        chosen: str | None = None,
        content_format: ContentFormat = "auto",
    ) -> None:
        """Take templates by name; `chosen` is one of the names, a file or a template, and renders everything.

        Raises:
            ConfigError: `chosen` is none of the three, or is no valid template.
        """
        self.sources = dict(sources) if chosen is None else {_DEFAULT: _read_chosen(chosen, sources)}
        self.special_tokens = dict(special_tokens)
        self.content_format = content_format
        self._compiled: dict[str, ChatTemplate] = {}
        if chosen is not None:
            try:
                self.compiled(with_tools=False)
            except InvalidRequest as error:
                raise ConfigError(f"chat_template={chosen[:80]!r} cannot be used. {error}") from None

    def changed(self, chosen: str | None, content_format: ContentFormat) -> ChatTemplates:
        """Return these with another choice, for one call; themselves where it is none.

        Raises:
            InvalidRequest: the choice is none of these, no file and no template.
        """
        formats = get_args(ContentFormat)
        if content_format not in formats:
            raise refuse("chat_template_content_format", content_format, f"it must be one of {', '.join(formats)}")
        if chosen is None and content_format in ("auto", self.content_format):
            return self
        try:
            return ChatTemplates(self.sources, self.special_tokens, chosen=chosen, content_format=content_format)
        except ConfigError as error:
            raise InvalidRequest(str(error), field="chat_template") from None

    def source(self, *, with_tools: bool) -> str:
        """Return the template that renders a conversation, with tools or without: the one that transformers would take.

        Raises:
            InvalidRequest: there is none.
        """
        if with_tools and _FOR_TOOLS in self.sources:
            return self.sources[_FOR_TOOLS]
        if _DEFAULT in self.sources:
            return self.sources[_DEFAULT]
        if len(self.sources) == 1 and _FOR_TOOLS not in self.sources:
            return next(iter(self.sources.values()))
        names = f"only templates named {', '.join(sorted(self.sources))}" if self.sources else "no chat template"
        raise InvalidRequest(
            f"messages cannot be rendered: this model has {names}. Use a plain completion (/v1/completions, generate), "
            "or serve with a template (--chat-template FILE or NAME).",
            field="messages",
        )

    def compiled(self, *, with_tools: bool) -> ChatTemplate:
        """Return the same, compiled."""
        source = self.source(with_tools=with_tools)
        if source not in self._compiled:
            self._compiled[source] = ChatTemplate(source, self.special_tokens, self.content_format)
        return self._compiled[source]


def read_templates(folder: Path, entry: Any) -> dict[str, str]:
    """Read a checkpoint's templates: files of their own go before the entry in tokenizer_config.json, which may be a list."""
    file = folder / "chat_template.json"
    try:
        if entry is None and file.is_file():
            entry = json.loads(_read(file)).get("chat_template")
        templates = {each["name"]: each["template"] for each in entry} if isinstance(entry, list) else {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"the chat templates in {str(folder)!r} cannot be read: {error!r}.") from None
    if isinstance(entry, str):
        templates = {_DEFAULT: entry}
    files = sorted(folder.glob("additional_chat_templates/*.jinja"))
    templates |= {file.stem: _read(file) for file in files}
    if (folder / "chat_template.jinja").is_file():
        templates[_DEFAULT] = _read(folder / "chat_template.jinja")
    return templates


def _read_chosen(chosen: str, sources: Mapping[str, str]) -> str:
    if chosen in sources:
        return sources[chosen]
    if any(sign in chosen for sign in ("{{", "{%", "\n")):
        return chosen
    if Path(chosen).is_file():
        return _read(Path(chosen))
    names = f"The model's own are {', '.join(sorted(sources))}." if sources else "The model has none of its own."
    raise ConfigError(f"chat_template={chosen!r} is neither a file nor the name of a template of this model. {names}")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the chat template {str(file)!r} cannot be read: {error}") from None
