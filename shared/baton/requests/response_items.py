"""The items of /v1/responses: what a conversation is made of there, and the messages that they come to."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from annotated_types import MaxLen
from pydantic import Discriminator, Field, Tag, field_validator

from baton.errors import refuse, unsupported
from baton.requests.closed import Closed, Unserved
from baton.requests.fields import FirstError, one_of
from baton.requests.messages import Parts
from baton.requests.unserved import SENT_BACK

MAX_ITEMS = 4096
_SEALED = "baton:"
"""What reasoning that travels as `encrypted_content` begins with. The text stands beside it, so it hides nothing."""
_DIRECT = Unserved("only the model itself calls functions", ({"type": "direct"},))
_HOSTED = "hosted tools are not served; only functions are"
OTHER_ITEMS = {
    **dict.fromkeys(
        (
            *("file_search_call", "web_search_call", "computer_call", "computer_call_output", "image_generation_call"),
            *("code_interpreter_call", "local_shell_call", "local_shell_call_output", "shell_call"),
            *("shell_call_output", "apply_patch_call", "apply_patch_call_output", "mcp_list_tools"),
            *("mcp_approval_request", "mcp_approval_response", "mcp_call", "tool_search_call", "tool_search_output"),
            *("program", "program_output"),
        ),
        _HOSTED,
    ),
    **dict.fromkeys(
        ("custom_tool_call", "custom_tool_call_output"), "only functions are served as tools, with JSON for arguments"
    ),
    **dict.fromkeys(("compaction", "compaction_trigger"), "a conversation is never rewritten; send what is to be read"),
    **dict.fromkeys(("additional_tools", "configuration_update"), "tools and settings are the request's own fields"),
}
"""Types of items that OpenAI knows and that are not served, with the reason."""

_Id = Annotated[str, Field(max_length=256)]
_Text = one_of({str: str, list: Parts}, "a text or a list of parts")


class MessageItem(Closed):
    """A message of a conversation."""

    ignored = SENT_BACK | {"phase", "status"}
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: _Text  # type: ignore[valid-type]
    id: _Id | None = None

    def described(self, made_id: str) -> dict[str, Any]:
        """Return the item as it is listed."""
        kind = "output_text" if self.role == "assistant" else "input_text"
        texts = [self.content] if isinstance(self.content, str) else [part.shown for part in self.content]
        more: dict[str, Any] = {"annotations": [], "logprobs": []} if self.role == "assistant" else {}
        return {
            "id": self.id or f"msg_{made_id}",
            "type": self.type,
            "role": self.role,
            "status": "completed",
            "content": [{"type": kind, "text": text, **more} for text in texts],
        }


class FunctionCallItem(Closed):
    """A call that the model made earlier."""

    ignored = SENT_BACK | {"status", "parsed_arguments"}
    unserved = {  # noqa: RUF012
        "caller": _DIRECT,
        "namespace": Unserved("functions have no namespaces here"),
        "async": Unserved("a call's result is sent before the next answer", (False,)),
    }
    type: Literal["function_call"]
    call_id: _Id
    name: _Id
    arguments: str
    id: _Id | None = None

    def described(self, made_id: str) -> dict[str, Any]:
        """Return the item as it is listed."""
        shown = {"call_id": self.call_id, "name": self.name, "arguments": self.arguments}
        return {"id": self.id or f"fc_{made_id}", "type": self.type, "status": "completed", **shown}


class FunctionOutputItem(Closed):
    """What a function gave."""

    ignored = SENT_BACK | {"status", "name"}
    unserved = {"caller": _DIRECT, "namespace": FunctionCallItem.unserved["namespace"]}  # noqa: RUF012
    type: Literal["function_call_output"]
    call_id: _Id
    output: _Text  # type: ignore[valid-type]
    id: _Id | None = None

    def described(self, made_id: str) -> dict[str, Any]:
        """Return the item as it is listed."""
        output: Any = self.output
        if not isinstance(output, str):
            output = [{"type": "input_text", "text": part.shown} for part in output]
        shown = {"call_id": self.call_id, "output": output}
        return {"id": self.id or f"fco_{made_id}", "type": self.type, "status": "completed", **shown}


class ReasoningText(Closed):
    """A piece of reasoning."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


_Texts = Annotated[list[ReasoningText], MaxLen(1024), FirstError()]


class ReasoningItem(Closed):
    """What the model thought before an earlier answer."""

    ignored = SENT_BACK | {"status"}
    type: Literal["reasoning"]
    summary: _Texts | None = None
    content: _Texts | None = None
    encrypted_content: str | None = None
    id: _Id | None = None

    @field_validator("encrypted_content")
    @classmethod
    def _is_ours(cls, sealed: str | None) -> str | None:
        if sealed is not None and sealed and unsealed(sealed) is None:
            raise refuse("encrypted_content", sealed, "it comes from another server", "Leave the item out.")
        return sealed

    @property
    def text(self) -> str:
        """The reasoning, from wherever a client has kept it."""
        if self.content:
            return "".join(part.text for part in self.content)
        if self.encrypted_content:
            return unsealed(self.encrypted_content) or ""
        return "".join(part.text for part in self.summary or ())

    def described(self, made_id: str) -> dict[str, Any]:
        """Return the item as it is listed."""
        content = [{"type": "reasoning_text", "text": self.text}]
        summary = [part.model_dump() for part in self.summary or ()]
        shown = {"summary": summary, "content": content, "encrypted_content": self.encrypted_content}
        return {"id": self.id or f"rs_{made_id}", "type": self.type, "status": "completed", **shown}


class ReferenceItem(Closed):
    """An item that an earlier, stored answer has, by its id."""

    type: Literal["item_reference"] = "item_reference"
    id: _Id


class OtherItem(Closed):
    """An item that is not served."""

    model_config = {"extra": "allow"}  # noqa: RUF012
    type: str

    def _check_other(self, name: str, value: object) -> None:
        """Its type alone is why it is refused."""

    @field_validator("type")
    @classmethod
    def _is_served(cls, kind: str) -> str:
        if kind in OTHER_ITEMS:
            raise unsupported("type", kind, OTHER_ITEMS[kind])
        raise refuse("type", kind, "items of this type are not known", f"Send one of {', '.join(_KINDS)}.")


_KINDS = {
    "message": MessageItem,
    "function_call": FunctionCallItem,
    "function_call_output": FunctionOutputItem,
    "reasoning": ReasoningItem,
    "item_reference": ReferenceItem,
}


def _kind_of(item: Any) -> str | None:
    if not isinstance(item, dict):
        return None
    kind = item.get("type")
    if kind is None:
        kind = "item_reference" if "id" in item and "role" not in item else "message"
    return f"({kind})" if isinstance(kind, str) and kind in _KINDS else "(other)"


Item = Annotated[
    Annotated[MessageItem, Tag("(message)")]
    | Annotated[FunctionCallItem, Tag("(function_call)")]
    | Annotated[FunctionOutputItem, Tag("(function_call_output)")]
    | Annotated[ReasoningItem, Tag("(reasoning)")]
    | Annotated[ReferenceItem, Tag("(item_reference)")]
    | Annotated[OtherItem, Tag("(other)")],
    Discriminator(_kind_of, "item", "it must be an object"),
]
Items = Annotated[list[Item], Field(max_length=MAX_ITEMS), FirstError()]
Known = MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem
"""What a conversation is made of when its references are looked up."""


def sealed(text: str) -> str:
    """Return reasoning as `encrypted_content`, for clients that send nothing else of it back."""
    return _SEALED + base64.b64encode(text.encode()).decode()


def unsealed(content: str) -> str | None:
    """Return the reasoning that `sealed` was given; None: it is none of ours."""
    if not content.startswith(_SEALED):
        return None
    try:
        return base64.b64decode(content.removeprefix(_SEALED), validate=True).decode()
    except (binascii.Error, ValueError):
        return None


def chat_messages(items: Iterable[Known]) -> list[dict[str, Any]]:
    """Return items as the messages of a chat: reasoning, text and calls that follow one another are one answer."""
    messages: list[dict[str, Any]] = []
    for item in items:
        if isinstance(item, MessageItem) and item.role != "assistant":
            messages.append({"role": item.role, "content": item.content})
        elif isinstance(item, FunctionOutputItem):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": item.output})
        else:
            _add_answer(messages, item)
    return messages


def _add_answer(messages: list[dict[str, Any]], item: Known) -> None:
    answer = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
    has_calls = answer is not None and "tool_calls" in answer
    has_said = answer is not None and (answer["content"] != "" or has_calls)
    if isinstance(item, FunctionCallItem):
        answer = answer or _new_answer(messages)
        function = {"name": item.name, "arguments": item.arguments}
        answer.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})
    elif isinstance(item, ReasoningItem):
        answer = _new_answer(messages) if answer is None or has_said else answer
        answer["reasoning_content"] = answer.get("reasoning_content", "") + item.text
    elif isinstance(item, MessageItem):
        answer = _new_answer(messages) if answer is None or has_said else answer
        answer["content"] = item.content


def _new_answer(messages: list[dict[str, Any]]) -> dict[str, Any]:
    messages.append({"role": "assistant", "content": ""})
    return messages[-1]
