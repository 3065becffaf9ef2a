"""The bodies that clients send, as closed models: a field that is not named here is refused by name.

Types and ranges stand here so that they are in the OpenAPI file too; how they mean something together is checked by
`SamplingParams`, which every request becomes.
"""

from __future__ import annotations

import contextlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from baton.errors import UnsupportedFeature, refuse
from baton.protocol import MAX_LIST, MAX_LOGPROBS, MAX_N, MAX_STOP, SamplingParams

MAX_PROMPTS = 64
"""Prompts of one completions request."""
MAX_CHOICES = 128
"""Prompts times n: fan-out is charged before admission."""
MAX_MESSAGES = 4096
MAX_TOOLS = 128

_INT31 = 2**31 - 1
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
_PARAMS = frozenset(SamplingParams.__struct_fields__)
Finite = Annotated[float, Field(allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, le=_INT31)]
TokenIds = Annotated[list[TokenId], Field(max_length=MAX_LIST)]
Words = Annotated[list[Annotated[str, Field(min_length=1, max_length=1024)]], Field(max_length=MAX_LIST)]


def _check_stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ValueError("it must be a string or a list of strings, none empty")
    if len(stops) > MAX_STOP or any(len(stop) > 1024 for stop in stops):
        raise ValueError(f"at most {MAX_STOP} strings of at most 1024 characters are taken")
    return tuple(stops)


Stop = Annotated[
    tuple[str, ...],
    PlainValidator(_check_stop),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": 1024},
                {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 1024}, "maxItems": MAX_STOP},
            ]
        }
    ),
]


def _check_logit_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict) or len(value) > MAX_LIST:
        raise ValueError(f"it must be an object of at most {MAX_LIST} token ids")
    bias: dict[int, float] = {}
    for key, number in value.items():
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10):
            raise ValueError(f"its keys must be token ids, and {key[:20]!r} is none")
        if not isinstance(number, (int, float)) or isinstance(number, bool) or not -100 <= number <= 100:
            raise ValueError("its values must be numbers from -100 to 100")
        bias[int(key)] = float(number)
    return bias


LogitBias = Annotated[
    dict[int, float],
    PlainValidator(_check_logit_bias),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "maxProperties": MAX_LIST,
        }
    ),
]

Prompts = list[str] | list[list[int]]


def _check_prompt(value: Any) -> Prompts:
    """Return a list of prompts, all texts or all token ids."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(type(item) is int for item in value):
            return [value]
        if len(value) > MAX_PROMPTS:
            raise ValueError(f"at most {MAX_PROMPTS} prompts are taken at once")
        if all(isinstance(item, str) for item in value):
            return value
        if all(isinstance(item, list) and item and all(type(t) is int for t in item) for item in value):
            return value
    raise ValueError("it must be a text, a list of token ids, or a list of either, none empty")


_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": _INT31}, "minItems": 1}
Prompt = Annotated[
    Prompts,
    PlainValidator(_check_prompt),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                _IDS_SCHEMA,
                {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_PROMPTS},
                {"type": "array", "items": _IDS_SCHEMA, "minItems": 1, "maxItems": MAX_PROMPTS},
            ]
        }
    ),
]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Closed):
    """What a stream carries beside text."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False
    include_obfuscation: bool | None = False


class ResponseFormat(_Closed):
    """Only plain text is served."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: dict[str, Any] | None = None


class Ignored(_Closed):
    """OpenAI's fields that ask for nothing we could fail to do: taken, and without effect."""

    user: Annotated[str, Field(max_length=4096)] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Annotated[str, Field(max_length=64)] | None = None
    safety_identifier: Annotated[str, Field(max_length=4096)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=4096)] | None = None
    prompt_cache_retention: Annotated[str, Field(max_length=64)] | None = None


class _Sampling(Ignored):
    """What both kinds of request share. None is the same as leaving a field out, as clients do both.

    A field that `SamplingParams` has too goes there by its name.
    """

    model: Annotated[str, Field(max_length=1024)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=_INT31)] | None = None
    temperature: Annotated[Finite, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias | None = None
    # vLLM's
    top_k: Annotated[int, Field(ge=-1, le=_INT31)] | None = None
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Finite, Field(gt=0, le=100)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=_INT31)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: Words | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=_INT31)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    response_format: ResponseFormat | None = None
    store: bool | None = None

    def check_unserved(self) -> None:
        """Refuse what is well-formed but not done here."""
        if self.store:
            raise UnsupportedFeature("store=True is not valid: nothing is stored. Leave it out.", field="store")
        if self.response_format is not None and self.response_format.type != "text":
            raise UnsupportedFeature(
                f"response_format={self.response_format.type!r} is not valid: only text is served by this build. "
                "Leave it out and ask for the format in the prompt.",
                field="response_format",
            )
        if self.stream_options is not None and not self.stream:
            raise refuse("stream_options", "set", "stream is not set", "Set stream, or leave it out.")

    def _params(self, **others: Any) -> dict[str, Any]:
        """Return the fields that the engine takes; `others` are no fields of ours, or mean something else here."""
        names = type(self).model_fields.keys() & _PARAMS
        given = {name: getattr(self, name) for name in names} | others
        return {name: value for name, value in given.items() if value is not None}


class CompletionRequest(_Sampling):
    """POST /v1/completions."""

    prompt: Prompt
    echo: bool | None = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_N)] | None = None

    @property
    def answers_nothing(self) -> bool:
        """Whether only the prompt is asked back, with its scores: max_tokens=0 with echo."""
        return self.max_tokens == 0

    def sampling_params(self) -> SamplingParams:
        """Return what the engine is asked for."""
        self.check_unserved()
        if self.answers_nothing and not self.echo:
            raise refuse("max_tokens", 0, "it must be at least 1, or 0 with echo")
        if len(self.prompt) * (self.n or 1) > MAX_CHOICES:
            raise refuse("n", self.n, f"prompts times n may be at most {MAX_CHOICES}", "Send several requests.")
        prompt_logprobs = self.prompt_logprobs
        if self.echo and self.logprobs is not None and prompt_logprobs is None:
            prompt_logprobs = self.logprobs
        max_tokens = None if self.max_tokens is None else max(self.max_tokens, 1)
        return SamplingParams(**self._params(prompt_logprobs=prompt_logprobs, max_tokens=max_tokens))


class FunctionCall(_Closed):
    """A call that the model made earlier."""

    name: Annotated[str, Field(max_length=256)]
    arguments: str | dict[str, Any]


class ToolCall(_Closed):
    """One entry of an assistant message's tool_calls."""

    id: Annotated[str, Field(max_length=256)] | None = None
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class TextPart(_Closed):
    """A part of a message. Only text is served."""

    type: Literal["text", "input_text", "output_text", "refusal"]
    text: str


class Message(_Closed):
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
        """Return the message as templates read it: arguments of calls as objects."""
        message: dict[str, Any] = {"role": self.role, "content": self.content if self.content is not None else ""}
        if isinstance(self.content, list):
            message["content"] = [{"type": "text", "text": part.text} for part in self.content]
        for field in ("name", "tool_call_id", "reasoning_content", "reasoning"):
            if getattr(self, field) is not None:
                message[field] = getattr(self, field)
        if self.tool_calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": _call_for_template(call.function)}
                for call in self.tool_calls
            ]
        return message


def _call_for_template(call: FunctionCall) -> dict[str, Any]:
    arguments: Any = call.arguments
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    return {"name": call.name, "arguments": arguments}


class FunctionDefinition(_Closed):
    """A function that the model may call."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: Annotated[str, Field(max_length=65_536)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Closed):
    """One entry of tools."""

    type: Literal["function"]
    function: FunctionDefinition


class _Rendered(_Closed):
    """A conversation, and how the model's template renders it."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

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
            "add_generation_prompt": (not continues) if add is None else add,
            "continue_final_message": continues,
            "kwargs": kwargs,
        }


class ChatRequest(_Sampling, _Rendered):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=_INT31)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    modalities: Annotated[list[Literal["text", "audio"]], Field(max_length=2)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None

    def sampling_params(self) -> SamplingParams:
        """Return what the engine is asked for."""
        self.check_unserved()
        self._check_tools()
        if self.modalities and "audio" in self.modalities:
            raise UnsupportedFeature("modalities=['audio'] is not valid: only text is served.", field="modalities")
        if self.top_logprobs is not None and not self.logprobs:
            raise refuse("top_logprobs", self.top_logprobs, "logprobs is not set", "Set logprobs.")
        if self.max_tokens == 0:
            raise refuse("max_tokens", 0, "it must be at least 1", "Leave it out to run to the end of the context.")
        max_tokens = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        params = self._params(logprobs=(self.top_logprobs or 0) if self.logprobs else None, max_tokens=None)
        return SamplingParams(**params, max_tokens=max_tokens)

    def for_template(self) -> dict[str, Any]:
        """Return what `TextPool.render_chat` takes."""
        arguments = super().for_template()
        if self.tool_choice == "none":
            arguments["tools"] = None
        if self.reasoning_effort is not None:
            arguments["kwargs"].setdefault("reasoning_effort", self.reasoning_effort)
        return arguments

    def _check_tools(self) -> None:
        if self.tool_choice in (None, "auto", "none"):
            return
        if self.tool_choice == "required" or isinstance(self.tool_choice, dict):
            raise UnsupportedFeature(
                "tool_choice is not valid: only none and auto are served by this build; a call cannot be forced.",
                field="tool_choice",
            )
        raise refuse("tool_choice", str(self.tool_choice)[:64], "it must be none or auto")


class TokenizeRequest(_Rendered):
    """POST /tokenize: a text, or messages."""

    model: Annotated[str, Field(max_length=1024)] | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_of(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("exactly one of prompt and messages must be given")
        return self


class DetokenizeRequest(_Closed):
    """POST /detokenize."""

    model: Annotated[str, Field(max_length=1024)] | None = None
    tokens: Annotated[list[TokenId], Field(max_length=2_000_000)]
