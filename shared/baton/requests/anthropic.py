"""A request to /v1/messages, as Anthropic's API has it, and the chat that it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from annotated_types import MaxLen
from pydantic import Discriminator, Field, Tag, field_validator

from baton.errors import refuse, unsupported
from baton.requests.chat import ChatRequest
from baton.requests.closed import Closed, Unserved
from baton.requests.conversation import MAX_MESSAGES
from baton.requests.fields import INT31, Finite, FirstError, Stop, Whole, one_of
from baton.requests.tools import MAX_TOOLS
from baton.requests.translated import Context, Translates

_HOSTED = "hosted tools are not served; only functions are"
OTHER_BLOCKS = {
    "image": "pictures are not served yet; only text is",
    **dict.fromkeys(("document", "container_upload"), "files are not served yet; send their text"),
    "search_result": "search results are sent as text",
    "redacted_thinking": "it comes from another server, and cannot be read here",
    **dict.fromkeys(
        (
            *("server_tool_use", "web_search_tool_result", "web_fetch_tool_result", "code_execution_tool_result"),
            *("bash_code_execution_tool_result", "text_editor_code_execution_tool_result", "tool_search_tool_result"),
            *("mcp_tool_use", "mcp_tool_result"),
        ),
        _HOSTED,
    ),
}
"""Types of content blocks that Anthropic knows and that are not served, with the reason."""
_SENT_ALONG = frozenset(["cache_control"])
"""Prefixes are cached by themselves, so nothing needs to say which."""
_NO_CITATIONS = Unserved("citations are not served", ([],))
_DIRECT = Unserved("only the model itself calls functions", ({"type": "direct"},))
_NO_SETS = Unserved("tools come one by one")
MESSAGES = {
    "container": Unserved(_HOSTED),
    "thread": Unserved("conversations are not kept here; send all messages"),
    "mcp_servers": Unserved(_HOSTED, ([],)),
    "context_management": Unserved("a conversation is never rewritten; send what is to be read", ({}, {"edits": []})),
    "diagnostics": Unserved("nothing is told beside the answer", ({},)),
    "inference_geo": Unserved("where workers stand is not the request's to say"),
    "speed": Unserved("there is one speed", ("standard",)),
    **dict.fromkeys(("stop", "n", "seed", "messages_format"), Unserved("it is none of Anthropic's API")),
    "max_completion_tokens": Unserved("it is called max_tokens here"),
    "max_tokens_to_sample": Unserved("it is called max_tokens here"),
    "response_format": Unserved("it is called output_config.format here"),
    "reasoning_effort": Unserved("it is called output_config.effort here"),
}
_IGNORED = frozenset(["cache_control", "service_tier", "user_profile_id", "workspace_id", "betas"])
TOOL = {
    "defer_loading": Unserved("all tools are shown to the model", (False,)),
    "allowed_callers": Unserved("only the model itself calls functions", (["direct"], [])),
    "input_examples": Unserved("what the model reads of a tool is its description and its schema", ([],)),
}


class TextBlock(Closed):
    """A text."""

    ignored = _SENT_ALONG
    unserved = {"citations": _NO_CITATIONS}  # noqa: RUF012
    type: Literal["text"]
    text: str


class ThinkingBlock(Closed):
    """What the model thought before an earlier answer."""

    ignored = _SENT_ALONG | {"signature"}
    type: Literal["thinking"]
    thinking: str


class ToolUseBlock(Closed):
    """A call that the model made earlier."""

    ignored = _SENT_ALONG
    unserved = {"caller": _DIRECT, "toolset_name": _NO_SETS}  # noqa: RUF012
    type: Literal["tool_use"]
    id: Annotated[str, Field(max_length=256)]
    name: Annotated[str, Field(max_length=256)]
    input: dict[str, Any]


class OtherBlock(Closed):
    """A content block that is not served."""

    type: str

    def _check_other(self, name: str, value: object) -> None:
        """Its type alone is why it is refused."""

    @field_validator("type")
    @classmethod
    def _is_served(cls, kind: str) -> str:
        if kind in OTHER_BLOCKS:
            raise unsupported("type", kind, OTHER_BLOCKS[kind])
        raise refuse("type", kind, "content blocks of this type are not known here")


def _kind_of(block: Any) -> str | None:
    if not isinstance(block, dict):
        return None
    kind = block.get("type")
    return f"({kind})" if kind in ("text", "thinking", "tool_use", "tool_result") else "(other)"


def _only_text(block: Any) -> str | None:
    return None if not isinstance(block, dict) else "(text)" if block.get("type") == "text" else "(other)"


_AnyText = Annotated[
    Annotated[TextBlock, Tag("(text)")] | Annotated[OtherBlock, Tag("(other)")],
    Discriminator(_only_text, "block", "it must be an object"),
]
_Texts = Annotated[list[_AnyText], MaxLen(4096), FirstError()]
_Text = one_of({str: str, list: _Texts}, "a text or a list of content blocks")


class ToolResultBlock(Closed):
    """What a function gave."""

    ignored = _SENT_ALONG
    unserved = {"toolset_name": _NO_SETS}  # noqa: RUF012
    type: Literal["tool_result"]
    tool_use_id: Annotated[str, Field(max_length=256)]
    content: _Text | None = None  # type: ignore[valid-type]
    is_error: bool | None = None

    def for_chat(self) -> dict[str, Any]:
        """Return it as a chat's message."""
        content = _shown(self.content or "")
        if self.is_error:
            content = [{"type": "text", "text": "Error: "}, *_parts(content)]
        return {"role": "tool", "tool_call_id": self.tool_use_id, "content": content}


_Block = Annotated[
    Annotated[TextBlock, Tag("(text)")]
    | Annotated[ThinkingBlock, Tag("(thinking)")]
    | Annotated[ToolUseBlock, Tag("(tool_use)")]
    | Annotated[ToolResultBlock, Tag("(tool_result)")]
    | Annotated[OtherBlock, Tag("(other)")],
    Discriminator(_kind_of, "block", "it must be an object"),
]
_Blocks = Annotated[list[_Block], MaxLen(4096), FirstError()]


class AnthropicMessage(Closed):
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: one_of({str: str, list: _Blocks}, "a text or a list of content blocks")  # type: ignore[valid-type]

    def for_chat(self, place: str) -> list[dict[str, Any]]:
        """Return it as messages of a chat: each result of a function is one.

        Raises:
            InvalidRequest: names what stands in the wrong `place`.
        """
        if isinstance(self.content, str) or not self.content:
            return [{"role": self.role, "content": self.content or ""}]
        takes = (TextBlock, ThinkingBlock, ToolUseBlock) if self.role == "assistant" else (TextBlock, ToolResultBlock)
        for index, block in enumerate(self.content):
            if not isinstance(block, takes):
                field = f"{place}.content[{index}].type"
                raise refuse(field, block.type, f"a message of the role {self.role} has none")
        return self._answer(self.content) if self.role == "assistant" else self._asked(self.content)

    def _asked(self, blocks: Sequence[Any]) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        for block in blocks:
            if isinstance(block, ToolResultBlock):
                messages.append(block.for_chat())
            elif messages and messages[-1]["role"] == self.role:
                messages[-1]["content"] += _shown([block])
            else:
                messages.append({"role": self.role, "content": _shown([block])})
        return messages

    def _answer(self, blocks: Sequence[Any]) -> list[dict[str, Any]]:
        texts, thoughts, calls = [], [], []
        for block in blocks:
            if isinstance(block, TextBlock):
                texts.append(block)
            elif isinstance(block, ThinkingBlock):
                thoughts.append(block.thinking)
            else:
                function = {"name": block.name, "arguments": block.input}
                calls.append({"id": block.id, "type": "function", "function": function})
        answer: dict[str, Any] = {"role": "assistant", "content": _shown(texts) or ""}
        if thoughts:
            answer["reasoning_content"] = "".join(thoughts)
        if calls:
            answer["tool_calls"] = calls
        return [answer]


class AnthropicTool(Closed):
    """A function that the model may call."""

    unserved = TOOL
    ignored = _SENT_ALONG | {"eager_input_streaming"}
    type: str | None = None
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: Annotated[str, Field(max_length=65_536)] | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None

    def _check_other(self, name: str, value: object) -> None:
        if self.type in (None, "custom"):
            super()._check_other(name, value)

    @field_validator("type")
    @classmethod
    def _is_function(cls, kind: str | None) -> str | None:
        if kind not in (None, "custom"):
            raise unsupported("type", kind, _HOSTED)
        return kind

    def for_chat(self) -> dict[str, Any]:
        """Return the tool as a chat has it."""
        given = {"description": self.description, "parameters": self.input_schema, "strict": self.strict}
        function = {"name": self.name} | {name: value for name, value in given.items() if value is not None}
        return {"type": "function", "function": function}


class AnthropicToolChoice(Closed):
    """Whether a function has to be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    def for_chat(self) -> Any:
        """Return a chat's tool_choice."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return "required" if self.type == "any" else self.type


class Thinking(Closed):
    """Whether the model thinks."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=1, le=INT31), Whole] | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Closed):
    """The form of the text."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(Closed):
    """What the answer is to be like."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class UserMetadata(Closed):
    """Whose the request is; taken without effect."""

    user_id: Annotated[str, Field(max_length=4096)] | None = None


class CountTokensRequest(Translates):
    """POST /v1/messages/count_tokens."""

    unserved = MESSAGES
    ignored = _IGNORED
    chat_names = {  # noqa: RUF012
        "max_completion_tokens": "max_tokens",
        "response_format.json_schema": "output_config.format",
        "response_format": "output_config.format",
        "reasoning_effort": "output_config.effort",
        "thinking_token_budget": "thinking.budget_tokens",
        "stop": "stop_sequences",
    }
    model: Annotated[str, Field(max_length=1024)] | None = None
    messages: Annotated[list[AnthropicMessage], Field(min_length=1, max_length=MAX_MESSAGES), FirstError()]
    system: _Text | None = None  # type: ignore[valid-type]
    tools: Annotated[list[AnthropicTool], Field(max_length=MAX_TOOLS), FirstError()] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    def translate(self, context: Context) -> tuple[ChatRequest, bytes]:
        return self.as_chat(self._fields()), b""

    def _fields(self) -> dict[str, Any]:
        """Return the fields of the chat."""
        messages = [] if self.system is None else [{"role": "system", "content": _shown(self.system)}]
        for index, message in enumerate(self.messages):
            messages += message.for_chat(f"messages[{index}]")
        goes_on = messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
        choice, output = self.tool_choice, self.output_config
        one_call = choice is not None and choice.disable_parallel_tool_use
        form = None if output is None else output.format
        return {
            "model": self.model,
            "messages": messages,
            "continue_final_message": goes_on or None,
            "tools": [tool.for_chat() for tool in self.tools or ()] or None,
            "tool_choice": None if choice is None else choice.for_chat(),
            "parallel_tool_calls": False if one_call else None,
            "reasoning_effort": None if output is None else output.effort,
            "response_format": None
            if form is None
            else {"type": "json_schema", "json_schema": {"name": "answer", "schema": form.json_schema}},
            **self._thinking(),
        }

    def _thinking(self) -> dict[str, Any]:
        thinking = self.thinking
        if thinking is None:
            return {}
        if thinking.type == "disabled":
            return {"reasoning_effort": "none"}
        fields: dict[str, Any] = {"include_reasoning": False} if thinking.display == "omitted" else {}
        if thinking.budget_tokens is not None:
            fields["thinking_token_budget"] = thinking.budget_tokens
        return fields


class MessagesRequest(CountTokensRequest):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1, le=INT31), Whole]
    stop_sequences: Stop | None = None
    temperature: Annotated[Finite, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT31), Whole] | None = None
    metadata: UserMetadata | None = None
    stream: bool | None = None

    def translate(self, context: Context) -> tuple[ChatRequest, bytes]:
        """Return the chat that answers it, and whether it is streamed."""
        same = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k")}
        own = {
            "max_completion_tokens": self.max_tokens,
            "stop": list(self.stop_sequences or ()) or None,
            "stream": self.stream,
        }
        return self.as_chat(self._fields() | own | same), msgspec.msgpack.encode(bool(self.stream))


def _shown(content: Any) -> Any:
    """Return a text, or a list of texts, as a chat has it."""
    return content if isinstance(content, str) else [{"type": "text", "text": block.text} for block in content]


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
