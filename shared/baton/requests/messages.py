"""The messages of a conversation, and their parts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from baton.requests.closed import Closed
from baton.requests.tools import MAX_TOOLS


class FunctionCall(Closed):
    """A call that the model made earlier."""

    name: Annotated[str, Field(max_length=256)]
    arguments: str | dict[str, Any]


class ToolCall(Closed):
    """One entry of an assistant message's tool_calls."""

    id: Annotated[str, Field(max_length=256)] | None = None
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class TextPart(Closed):
    """A part of a message. Only text is served."""

    type: Literal["text", "input_text", "output_text", "refusal"]
    text: str


class Message(Closed):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    # what the SDK sends back of an earlier answer
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and not self.tool_calls and self.role != "assistant":
            raise ValueError("content is missing")
        return self

    def for_template(self) -> dict[str, Any]:
        """Return the message as `ChatTemplate` takes it."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if isinstance(self.content, list):
            message["content"] = [{"type": "text", "text": part.text} for part in self.content]
        for field in ("name", "tool_call_id", "reasoning_content", "reasoning"):
            if getattr(self, field) is not None:
                message[field] = getattr(self, field)
        if self.tool_calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": call.function.model_dump()} for call in self.tool_calls
            ]
        return message
