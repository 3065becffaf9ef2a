"""Every field of OpenAI's SDK and of vLLM's protocol is taken, taken where it is neutral, ignored, or refused: none is unknown."""

import typing
from collections.abc import Iterator
from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import (
    ChatCompletionContentPartParam,
    ChatCompletionMessageParam,
    ChatCompletionStreamOptionsParam,
)
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.chat.chat_completion_assistant_message_param import ContentArrayOfContentPart
from openai.types.chat.chat_completion_message_tool_call_union_param import ChatCompletionMessageToolCallUnionParam
from openai.types.chat.chat_completion_tool_union_param import ChatCompletionToolUnionParam
from openai.types.shared_params import FunctionDefinition as SdkFunction
from tests.conformance.fields import VLLM_CHAT, VLLM_SAMPLING

from baton.requests.chat import ChatRequest
from baton.requests.closed import Closed
from baton.requests.completions import CompletionRequest
from baton.requests.messages import Message, TextPart, ToolCall
from baton.requests.sampling import StreamOptions
from baton.requests.tokenize import TokenizeRequest
from baton.requests.tools import FunctionDefinition, Tool

VLLM_TOKENIZE = """
    model prompt messages add_special_tokens return_token_strs add_generation_prompt continue_final_message chat_template
    chat_template_kwargs mm_processor_kwargs media_io_kwargs tools
"""
VLLM_PARTS = """
    image_url image_pil image_embeds audio_url audio_embeds input_audio video_url input_image input_text output_text
    refusal thinking prompt_embeds file
"""


def fields_of(sdk_type: Any) -> set[str]:
    """Name the keys of a TypedDict, or of all in a union."""
    members = typing.get_args(sdk_type) or (sdk_type,)
    return {name for member in members for name in typing.get_type_hints(member)}


def unknown(model: type[Closed], names: set[str]) -> set[str]:
    return names - model.model_fields.keys() - model.unserved.keys() - model.ignored


@pytest.mark.parametrize(
    ("model", "sdk_type"),
    [
        (ChatRequest, chat_create_params.CompletionCreateParamsNonStreaming),
        (ChatRequest, chat_create_params.CompletionCreateParamsStreaming),
        (CompletionRequest, completion_create_params.CompletionCreateParamsNonStreaming),
        (CompletionRequest, completion_create_params.CompletionCreateParamsStreaming),
        (StreamOptions, ChatCompletionStreamOptionsParam),
        (Message, ChatCompletionMessageParam),
        (TextPart, ChatCompletionContentPartParam),
        (TextPart, ContentArrayOfContentPart),
        (Tool, ChatCompletionToolUnionParam),
        (ToolCall, ChatCompletionMessageToolCallUnionParam),
        (FunctionDefinition, SdkFunction),
    ],
)
def test_no_field_of_the_sdk_is_unknown(model: type[Closed], sdk_type: Any) -> None:
    assert unknown(model, fields_of(sdk_type)) == set()


def test_every_type_of_part_of_the_sdk_is_known() -> None:
    kinds = {kind for hint in _hints(ChatCompletionContentPartParam, "type") for kind in typing.get_args(hint)}
    assert kinds - {"text"} == {"image_url", "input_audio", "file"} <= TextPart.unserved.keys()


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (ChatRequest, VLLM_SAMPLING + VLLM_CHAT),
        (CompletionRequest, VLLM_SAMPLING + "prompt_embeds"),
        (TokenizeRequest, VLLM_TOKENIZE),
        (TextPart, VLLM_PARTS),
        (Message, "reasoning tools"),
        (Tool, "defer_loading"),
        (FunctionDefinition, "defer_loading strict"),
    ],
)
def test_no_field_of_vllm_is_unknown(model: type[Closed], names: str) -> None:
    texts = {"input_text", "output_text"} if model is TextPart else set()
    assert unknown(model, set(names.split())) == texts


def test_nothing_is_served_and_unserved_or_ignored_at_once() -> None:
    for model in (ChatRequest, CompletionRequest, Message, TextPart, Tool, ToolCall, FunctionDefinition):
        sets = [model.model_fields.keys(), model.unserved.keys(), model.ignored]
        assert sum(map(len, sets)) == len(set().union(*sets)), model.__name__


def _hints(union: Any, field: str) -> Iterator[Any]:
    for member in typing.get_args(union):
        required = typing.get_type_hints(member)[field]
        yield typing.get_args(required)[0] if typing.get_origin(required) is typing.Required else required
