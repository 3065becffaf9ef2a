"""A conversation, and how the model's template renders it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PrivateAttr

from baton.errors import refuse, unsupported
from baton.requests.closed import Closed
from baton.requests.fields import FirstError
from baton.requests.messages import Message
from baton.requests.tools import MAX_TOOLS, Tool

MAX_MESSAGES = 4096
MAX_DOCUMENTS = 1024
MAX_TEMPLATE_LEN = 65_536
_RESERVED = frozenset(
    [
        "messages",
        "tools",
        "documents",
        "chat_template",
        "tokenize",
        "bos_token",
        "eos_token",
        "add_generation_prompt",
        "continue_final_message",
    ]
)
"""What a template sees from elsewhere."""


class Conversation(Closed):
    """A conversation, and how the model's template renders it."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES), FirstError()] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS), FirstError()] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: Annotated[list[dict[str, str]], Field(max_length=MAX_DOCUMENTS), FirstError()] | None = None
    chat_template: Annotated[str, Field(min_length=1, max_length=MAX_TEMPLATE_LEN)] | None = None
    _rendered: str | None = PrivateAttr(default=None)

    @property
    def rendered(self) -> str | None:
        """The text that the template gave, where the body was too long to be rendered after it was read."""
        return self._rendered

    @property
    def shows_tools(self) -> bool:
        """Whether the model is shown functions to call."""
        return bool(self.tools)

    def with_text(self, rendered: str) -> None:
        """Take the text that the template gave in place of all that it was made of."""
        self._rendered = rendered

    def own_template(self, *, trusted: bool) -> str | None:
        """Return the template that the request brings, if it does.

        Raises:
            InvalidRequest: such are not trusted; with the flag.
        """
        if self.chat_template is not None and not trusted:
            way_out = "Leave it out, or have the router started with --trust-request-chat-template."
            reason = "templates of requests are not rendered here"
            raise unsupported("chat_template", self.chat_template, reason, way_out)
        return self.chat_template

    def for_template(self) -> dict[str, Any]:
        """Return what `TextPool.render_chat` takes."""
        continues = bool(self.continue_final_message)
        if continues and self.add_generation_prompt:
            raise refuse(
                "continue_final_message", True, "it excludes add_generation_prompt", "Set one of the two to false."
            )
        kwargs = dict(self.chat_template_kwargs or {})
        for name in sorted(_RESERVED & kwargs.keys()):
            raise refuse("chat_template_kwargs", name, "it is not for a request to set there", "Leave it out.")
        add = self.add_generation_prompt
        return {
            "messages": [message.for_template() for message in self.messages or ()],
            "tools": [tool.model_dump(exclude_none=True) for tool in self.tools or ()] or None,
            "documents": self.documents or None,
            "add_generation_prompt": (not continues) if add is None else add,
            "continue_final_message": continues,
            "kwargs": kwargs,
        }
