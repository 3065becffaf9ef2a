"""A request to /v1/responses, and the chat that it comes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from pydantic import Field, TypeAdapter, create_model, field_validator

from baton.errors import InvalidRequest, refuse, unsupported
from baton.protocol import MAX_LOGPROBS
from baton.requests.chat import ChatRequest
from baton.requests.closed import Closed, Unserved
from baton.requests.fields import INT31, FirstError, Whole, one_of
from baton.requests.response_items import Items, Known, ReferenceItem, chat_messages
from baton.requests.tools import MAX_TOOLS
from baton.requests.translated import Context, Translates, dumps
from baton.requests.unserved import CHAT

_SHARED = (
    *("temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias", "top_k", "min_p"),
    *("repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids", "include_stop_str_in_output"),
    *("skip_special_tokens", "spaces_between_special_tokens", "allowed_token_ids", "bad_words", "priority"),
    *("cache_salt", "add_special_tokens", "chat_template_kwargs", "structured_outputs", "thinking_token_budget"),
)
"""Fields of a chat that mean the same here, as far as there are such."""
SHARED = tuple(name for name in _SHARED if name in ChatRequest.model_fields)
OTHER_TOOLS = {
    **dict.fromkeys(
        (
            *("web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11"),
            *("file_search", "computer", "computer_use_preview", "mcp", "code_interpreter", "image_generation"),
            *("local_shell", "shell", "apply_patch", "tool_search", "programmatic_tool_calling"),
        ),
        "hosted tools are not served; only functions are",
    ),
    "custom": "only functions are served as tools, with JSON for arguments",
    "namespace": "functions have no namespaces here",
}
"""Types of tools that OpenAI knows and that are not served, with the reason."""
_INCLUDED = ("message.output_text.logprobs", "reasoning.encrypted_content")
_NO_TEXT = "the answer is text alone"
RESPONSE = {
    **{name: field for name, field in CHAT.items() if name not in SHARED},
    "conversation": Unserved("conversations are not kept as such; use previous_response_id"),
    "prompt": Unserved("prompt templates are not kept here; send instructions and input", ({},)),
    "context_management": Unserved("a conversation is never rewritten; send what is to be read", ([],)),
    "moderation": Unserved("nothing is moderated here"),
    "access_programs": Unserved("there are no such programs here", ({},)),
    "background_options": Unserved("answers are made at once", ({}, {"completion_window": "soonest"})),
    "image": Unserved("only text is served", ({}, {"context_compression": "auto"})),
    "messages": Unserved("a conversation is sent in input here"),
    "max_tokens": Unserved("it is called max_output_tokens here"),
    "max_completion_tokens": Unserved("it is called max_output_tokens here"),
    "response_format": Unserved("it is called text.format here"),
    "reasoning_effort": Unserved("it stands in reasoning here, as effort"),
    "logprobs": Unserved('they are asked for by include: ["message.output_text.logprobs"]', (False,)),
    "logits_processors": Unserved("chat and completions take it", ([],)),
    "vllm_xargs": Unserved("chat and completions have logits processors to take it", ({},)),
    "include_reasoning": Unserved("it is asked for in include", (True,)),
    "mm_payload": Unserved("only text is served", ("tensors", "none")),
    "return_mm_kwargs": Unserved("only text is served", (False,)),
    "session_id": Unserved("conversations are followed by previous_response_id"),
    "n": Unserved("one answer is made", (1,)),
    "request_id": Unserved("ids are made here; the header x-request-id follows a request"),
    "enable_response_messages": Unserved("use /tokenize to see what the model reads", (False,)),
    "previous_input_messages": Unserved("a conversation is sent in input here", ([],)),
    "previous_response": Unserved("name it by previous_response_id, or send its items in input"),
    "return_token_ids": Unserved(_NO_TEXT, (False,)),
    "prompt_logprobs": Unserved("prompts are scored by /v1/completions and /v1/chat/completions"),
}
_IGNORED = frozenset(["prompt_cache_options", "prompt_cache_retention"])


class ResponseFunction(Closed):
    """A function that the model may call."""

    unserved = {  # noqa: RUF012
        "defer_loading": Unserved("all tools are shown to the model", (False,)),
        "allowed_callers": Unserved("only the model itself calls functions", (["direct"], [])),
        "output_schema": Unserved("results are taken as they come"),
        "async": Unserved("a call's result is sent before the next answer", (False,)),
    }
    type: str = "function"
    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    description: Annotated[str, Field(max_length=65_536)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def _check_other(self, name: str, value: object) -> None:
        if self.type == "function":
            super()._check_other(name, value)

    @field_validator("type")
    @classmethod
    def _is_function(cls, kind: str) -> str:
        if kind in OTHER_TOOLS:
            raise unsupported("type", kind, OTHER_TOOLS[kind])
        if kind != "function":
            raise refuse("type", kind, "there is no such kind of tool", "Send functions.")
        return kind

    def for_chat(self) -> dict[str, Any]:
        """Return the tool as a chat has it."""
        return {"type": "function", "function": self.model_dump(exclude={"type"}, exclude_none=True)}


class AllowedTool(Closed):
    """A tool that may be called."""

    type: Literal["function"]
    name: str


class ToolChoiceObject(Closed):
    """A function that has to be called, or those that may be."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: Annotated[list[AllowedTool], Field(max_length=MAX_TOOLS), FirstError()] | None = None

    @field_validator("type")
    @classmethod
    def _is_served(cls, kind: str) -> str:
        if kind not in ("function", "allowed_tools"):
            raise unsupported("type", kind, "only functions are served as tools")
        return kind


class TextFormat(Closed):
    """The form of the text."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(max_length=256)] | None = None
    description: Annotated[str, Field(max_length=65_536)] | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    def for_chat(self) -> dict[str, Any]:
        """Return it as a chat's response_format."""
        if self.type != "json_schema":
            return {"type": self.type}
        if self.json_schema is None or self.name is None:
            missing = "schema" if self.json_schema is None else "name"
            field = f"text.format.{missing}"
            raise InvalidRequest(f"{field} is missing. Give it.", field=field, code="missing_required_parameter")
        return {"type": self.type, "json_schema": self.model_dump(exclude={"type"}, exclude_none=True, by_alias=True)}


class TextSettings(Closed):
    """What the text of the answer is to be like."""

    unserved = {"verbosity": CHAT["verbosity"]}  # noqa: RUF012
    format: TextFormat | None = None


class ReasoningSettings(Closed):
    """How the model thinks."""

    unserved = {  # noqa: RUF012
        "generate_summary": Unserved("reasoning is given whole, not in short", ("auto",)),
        "summary": Unserved("reasoning is given whole, not in short", ("auto",)),
        "context": Unserved("what of earlier reasoning is read, the chat template says", ("auto",)),
        "mode": Unserved("there is one mode", ("standard",)),
    }
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


class ResponseStreamOptions(Closed):
    """What a stream carries beside text."""

    include_obfuscation: bool | None = False


class Kept(msgspec.Struct):
    """What of a request is needed beside the chat that it comes to."""

    echo: bytes
    """The fields that the answer repeats, as JSON without its braces."""
    input: bytes
    """The items of the input, as they are listed, in JSON."""
    stream: bool = False
    background: bool = False
    store: bool | None = None
    with_logprobs: bool = False
    seals_reasoning: bool = False
    previous_response_id: str | None = None


if TYPE_CHECKING:
    _Sampling = Translates
else:
    _Sampling = create_model(
        "Sampling",
        __base__=Translates,
        **{name: (ChatRequest.model_fields[name].annotation, ChatRequest.model_fields[name]) for name in SHARED},
    )


class ResponsesRequest(_Sampling):
    """POST /v1/responses."""

    unserved = RESPONSE
    ignored = _IGNORED
    chat_names = {  # noqa: RUF012
        "max_completion_tokens": "max_output_tokens",
        "messages": "input",
        "response_format.json_schema": "text.format",
        "response_format": "text.format",
        "reasoning_effort": "reasoning.effort",
    }
    model: Annotated[str, Field(max_length=1024)] | None = None
    input: one_of({str: str, list: Items}, "a text or a list of items")  # type: ignore[valid-type]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=INT31), Whole] | None = None
    tools: Annotated[list[ResponseFunction], Field(max_length=MAX_TOOLS), FirstError()] | None = None
    tool_choice: one_of({str: str, dict: ToolChoiceObject}, "a string or an object") | None = None  # type: ignore[valid-type]
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Field(ge=0, le=INT31), Whole] | None = None
    text: TextSettings | None = None
    reasoning: ReasoningSettings | None = None
    include: Annotated[list[str], Field(max_length=64)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), Whole] | None = None
    previous_response_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)] | None = None
    service_tier: Annotated[str, Field(max_length=64)] | None = None
    user: Annotated[str, Field(max_length=4096)] | None = None
    safety_identifier: Annotated[str, Field(max_length=4096)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=4096)] | None = None

    def translate(self, context: Context) -> tuple[ChatRequest, bytes]:
        """Return the chat that answers it, and what is needed beside that.

        Raises:
            InvalidRequest: it asks for what is not served, or names an item that is not there.
        """
        self._check()
        own = self._own_items(context)
        before = _ITEMS.validate_json(context.before)
        messages = chat_messages([*before, *own])
        if self.instructions is not None:
            messages.insert(0, {"role": "system", "content": self.instructions})
        if not messages:
            raise refuse("input", [], "it holds no item", "Give a text or items.")
        with_logprobs = _INCLUDED[0] in (self.include or ()) or bool(self.top_logprobs)
        tools, choice = self._chat_tools()
        reasoning_effort = self.reasoning.effort if self.reasoning is not None else None
        form = self.text.format if self.text is not None else None
        fields = {
            "model": self.model,
            "messages": messages,
            "tools": tools,
            "tool_choice": choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "max_completion_tokens": self.max_output_tokens,
            "response_format": None if form is None else form.for_chat(),
            "reasoning_effort": reasoning_effort,
            "logprobs": with_logprobs,
            # which bounds scores, as a stream of a response keeps them to its end
            "stream": self.stream and not with_logprobs,
            "top_logprobs": self.top_logprobs,
            **{name: getattr(self, name) for name in SHARED},
        }
        return self.as_chat(fields), msgspec.msgpack.encode(self._kept(context, own, with_logprobs))

    def _check(self) -> None:
        if self.truncation == "auto":
            raise unsupported("truncation", "auto", "a prompt is never rewritten; send the part that you want")
        for name in self.include or ():
            if name not in _INCLUDED:
                raise unsupported("include", name, f"what can be included is {' and '.join(_INCLUDED)}")
        if self.background and self.store is False:
            raise refuse("background", True, "store is false, and what is not kept cannot be fetched", "Set store.")
        if self.stream_options is not None and self.stream_options.include_obfuscation and not self.stream:
            raise refuse("stream_options", "set", "stream is not set", "Set stream, or leave it out.")
        for index, tool in enumerate(self.tools or ()):
            if tool.name is None:
                field = f"tools[{index}].name"
                raise InvalidRequest(f"{field} is missing. Give it.", field=field, code="missing_required_parameter")

    def _own_items(self, context: Context) -> list[Known]:
        if isinstance(self.input, str):
            return _ITEMS.validate_python([{"role": "user", "content": self.input}])
        own: list[Known] = []
        for index, item in enumerate(self.input):
            if isinstance(item, ReferenceItem):
                found = context.referred.get(item.id)
                if found is None:
                    raise refuse(f"input[{index}].id", item.id, "no answer that is kept here has this item")
                own += _ITEMS.validate_json(b"[%b]" % found)
            else:
                own.append(item)
        return own

    def _chat_tools(self) -> tuple[list[dict[str, Any]] | None, Any]:
        """Return a chat's tools and tool_choice."""
        tools, choice = self.tools or [], self.tool_choice
        if not isinstance(choice, ToolChoiceObject):
            return [tool.for_chat() for tool in tools] or None, choice
        if choice.type == "function":
            return [tool.for_chat() for tool in tools] or None, {"type": "function", "function": {"name": choice.name}}
        allowed = [tool.name for tool in choice.tools or ()]
        for name in allowed:
            if name not in [tool.name for tool in tools]:
                raise refuse("tool_choice.tools", name, "no tool of this name is given", "Name those in tools.")
        shown = [tool.for_chat() for tool in tools if tool.name in allowed]
        return shown or None, choice.mode or "auto" if shown else "none"

    def _kept(self, context: Context, own: list[Known], with_logprobs: bool) -> Kept:
        name = context.response_id.removeprefix("resp_")
        listed = [item.described(f"{name}i{index}") for index, item in enumerate(own)]
        form = self.text.format if self.text is not None else None
        effort = self.reasoning.effort if self.reasoning is not None else None
        choice = self.tool_choice
        echo = {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "prompt_cache_key": self.prompt_cache_key,
            "reasoning": {"effort": effort, "summary": None},
            "safety_identifier": self.safety_identifier,
            "text": {"format": {"type": "text"} if form is None else _shown(form), "verbosity": "medium"},
            "tool_choice": "auto" if choice is None else choice if isinstance(choice, str) else _shown(choice),
            "tools": [tool.model_dump() for tool in self.tools or ()],
            "top_logprobs": self.top_logprobs or 0,
            "truncation": "disabled",
            "user": self.user,
        }
        return Kept(
            dumps(echo)[1:-1],
            dumps(listed),
            stream=bool(self.stream),
            background=bool(self.background),
            store=self.store,
            with_logprobs=with_logprobs,
            seals_reasoning=_INCLUDED[1] in (self.include or ()),
            previous_response_id=self.previous_response_id,
        )


_ITEMS: TypeAdapter[list[Any]] = TypeAdapter(Items)


def _shown(part: Closed) -> dict[str, Any]:
    return part.model_dump(exclude_none=True, by_alias=True)
