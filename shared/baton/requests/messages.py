"""The messages of a conversation, and their parts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import MaxLen
from pydantic import Field, WithJsonSchema, field_validator, model_validator

from baton.errors import InvalidRequest, refuse, unsupported
from baton.requests.closed import Closed
from baton.requests.fields import FirstError, TextOrObject, one_of
from baton.requests.tools import MAX_TOOLS
from baton.requests.unserved import CALL, MESSAGE, PART, SENT_BACK

_TEXTS = ("text", "input_text", "output_text", "refusal")


class FunctionCall(Closed):
    """A call that the model made earlier."""

    ignored = SENT_BACK | {"parsed_arguments"}
    name: Annotated[str, Field(max_length=256)]
    arguments: TextOrObject | None = None

    def for_template(self) -> dict[str, Any]:
        """Return the call as `ChatTemplate` takes it."""
        return {"name": self.name, "arguments": self.arguments or {}}


class ToolCall(Closed):
    """One entry of an assistant message's tool_calls."""

    unserved = CALL
    ignored = SENT_BACK
    id: Annotated[str, Field(max_length=256)] | None = None
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class TextPart(Closed):
    """A part of a message. Only text is served."""

    unserved = PART
    ignored = SENT_BACK | {"annotations", "id", "logprobs"}
    type: Annotated[str, WithJsonSchema({"enum": _TEXTS})] = "text"
    text: str | None = None
    refusal: str | None = None

    @field_validator("type")
    @classmethod
    def _is_text(cls, kind: str) -> str:
        if kind in PART:
            raise unsupported("type", kind, PART[kind].reason)
        if kind not in _TEXTS:
            raise refuse("type", kind, "parts of this type are not known", "Send text.")
        return kind

    @model_validator(mode="after")
    def _says_something(self) -> TextPart:
        if self.text is None and (self.type != "refusal" or self.refusal is None):
            raise InvalidRequest("text is missing. Give it.", field="text", code="missing_required_parameter")
        return self

    @property
    def shown(self) -> str:
        """The part's text."""
        return self.text if self.text is not None else self.refusal or ""


Parts = Annotated[list[TextPart], MaxLen(4096), FirstError()]
Content = one_of({str: str, list: Parts}, "a text or a list of parts")


class Message(Closed):
    """One message of a conversation."""

    unserved = MESSAGE
    # what SDKs send back of an earlier answer, and what other servers read
    ignored = SENT_BACK | {"annotations", "reasoning_details", "thinking_blocks", "parsed", "id", "metadata", "weight"}
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None  # type: ignore[valid-type]
    name: Annotated[str, Field(max_length=256)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS), FirstError()] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and self.role in ("system", "developer", "user"):
            raise InvalidRequest("content is missing. Give it.", field="content", code="missing_required_parameter")
        return self

    @property
    def text(self) -> str:
        """All that it says."""
        if isinstance(self.content, list):
            return "".join(part.shown for part in self.content)
        return self.content or ""

    def for_template(self) -> dict[str, Any]:
        """Return the message as `ChatTemplate` takes it."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if isinstance(self.content, list):
            message["content"] = [{"type": "text", "text": part.shown} for part in self.content]
        for field in ("name", "tool_call_id", "reasoning_content", "reasoning"):
            if getattr(self, field) is not None:
                message[field] = getattr(self, field)
        if self.tool_calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": call.function.for_template()}
                for call in self.tool_calls
            ]
        return message
