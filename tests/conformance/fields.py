"""Every field of requests that OpenAI's SDK and vLLM have, and a value of each that asks for something.

OpenAI's names are read from the SDK that is installed, so that a new one is missed here until somebody decides on it.
What becomes of a field is read from the models that check requests.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from baton.requests.chat import ChatRequest
from baton.requests.closed import Closed
from baton.requests.completions import CompletionRequest
from baton.requests.pooling import EmbeddingRequest
from baton.requests.responses import ResponsesRequest
from baton.requests.sampling import Ignored

VLLM_VERSION = "0.33"
VLLM_SAMPLING = """
    use_beam_search top_k min_p repetition_penalty watermarking length_penalty stop_token_ids include_stop_str_in_output
    ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side
    prompt_logprobs logprob_token_ids allowed_token_ids bad_words early_stopping logits_processors
    add_special_tokens response_format structured_outputs priority request_id session_id return_tokens_as_token_ids
    return_token_ids routed_experts_prompt_start return_token_offsets return_mm_kwargs cache_salt kv_transfer_params
    ec_transfer_params vllm_xargs repetition_detection thinking_token_budget stream_interval
    mm_payload return_weight_versions
    guided_json guided_regex guided_choice guided_grammar structural_tag guided_decoding_backend
    guided_whitespace_pattern
"""
"""Beside OpenAI's, in the order of its protocol, and those that it has given up."""
VLLM_CHAT = """
    include_reasoning echo add_generation_prompt continue_final_message documents chat_template chat_template_kwargs
    media_io_kwargs mm_processor_kwargs return_prompt_text best_of
"""
VLLM_RESPONSES = """
    logit_bias top_k skip_special_tokens include_stop_str_in_output request_id mm_processor_kwargs priority cache_salt
    enable_response_messages previous_input_messages previous_response structured_outputs repetition_penalty seed stop
    ignore_eos vllm_xargs chat_template_kwargs ec_transfer_params frequency_penalty include_reasoning kv_transfer_params
    media_io_kwargs min_p mm_payload presence_penalty return_mm_kwargs session_id spaces_between_special_tokens
    stop_token_ids watermarking
"""
VLLM_EMBEDDINGS = """
    truncate_prompt_tokens truncation_side request_id priority mm_processor_kwargs cache_salt embed_dtype endianness
    use_activation add_special_tokens messages add_generation_prompt continue_final_message chat_template
    chat_template_kwargs padding media_io_kwargs
"""

What = Literal["honoured", "without effect", "neutral only", "refused"]


@dataclass(frozen=True)
class Route:
    """One kind of request."""

    path: str
    model: type[Closed]
    sdk: tuple[Any, ...]
    vllm: str
    least: dict[str, Any]
    """The smallest request."""
    values: dict[str, Any]
    """A value of each field that asks for something."""

    def openai_fields(self) -> set[str]:
        return {name for each in self.sdk for name in typing.get_type_hints(each)}

    def vllm_fields(self) -> set[str]:
        return set(self.vllm.split())

    def what(self, name: str) -> What | None:
        """Say what becomes of a field; None: it is not known."""
        if name in self.model.ignored or (name in Ignored.model_fields and name in self.model.model_fields):
            return "without effect"
        if name in self.model.model_fields:
            return "honoured"
        if name not in self.model.unserved:
            return None
        return "neutral only" if self.model.unserved[name].neutral else "refused"


class With(NamedTuple):
    """A value that means nothing without other fields."""

    value: Any
    others: dict[str, Any]


_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
_MESSAGES = [{"role": "user", "content": "hello"}]
_BEAMS = {"use_beam_search": True, "n": 2}
_SCHEMA = {"type": "object", "properties": {}}
_NO_EFFECT: dict[str, Any] = {
    **{"user": "u", "metadata": {"a": "b"}, "service_tier": "auto", "safety_identifier": "s", "prompt_cache_key": "k"},
    **{"prompt_cache_retention": "24h", "prompt_cache_options": {"mode": "x"}, "session_id": "s"},
    **{"return_mm_kwargs": True},
}
_SHARED: dict[str, Any] = {
    **_NO_EFFECT,
    **{"model": "tiny", "n": 2, "max_tokens": 2, "temperature": 0.5, "top_p": 0.5, "seed": 1, "stop": ["x"]},
    **{"stream": True, "stream_options": With({"include_usage": True}, {"stream": True}), "logit_bias": {"9": 1}},
    **{"presence_penalty": 0.5, "frequency_penalty": 0.5, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1},
    **{"min_tokens": 1, "ignore_eos": True, "stop_token_ids": [3], "include_stop_str_in_output": True},
    **{"skip_special_tokens": False, "spaces_between_special_tokens": False, "prompt_logprobs": 1},
    **{"allowed_token_ids": [40, 41], "bad_words": ["no"], "priority": 1, "cache_salt": "s", "return_token_ids": True},
    **{"add_special_tokens": True, "truncate_prompt_tokens": 2, "request_id": "r", "store": False},
    "truncation_side": With("right", {"truncate_prompt_tokens": 1}),
    "return_tokens_as_token_ids": With(True, {"logprobs": 1}),
    "logprob_token_ids": With([40], {"logprobs": 1}),
    "repetition_detection": {"max_pattern_size": 2, "min_count": 3},
    **{"use_beam_search": True, "length_penalty": With(2.0, _BEAMS), "early_stopping": With(True, _BEAMS)},
    # asked for here, served or not
    **{"response_format": {"type": "text"}, "structured_outputs": {"choice": ["a", "b"]}, "guided_json": _SCHEMA},
    **{"guided_regex": "a", "guided_choice": ["a"], "guided_grammar": 'root ::= "a"', "structural_tag": "{}"},
    **{"guided_decoding_backend": "xgrammar", "guided_whitespace_pattern": With(" ", {"guided_json": _SCHEMA})},
    **{"logits_processors": ["no_such_processor"], "vllm_xargs": {"a": 1}, "thinking_token_budget": 8},
    **{"watermarking": True, "return_token_offsets": True, "routed_experts_prompt_start": 1, "stream_interval": 4},
    **{"kv_transfer_params": {"a": 1}, "ec_transfer_params": {"a": 1}, "prompt_embeds": "AAAA"},
    **{"moderation": {"mode": "x"}, "mm_payload": "other", "return_weight_versions": True},
}
CHAT = Route(
    "/v1/chat/completions",
    ChatRequest,
    (chat_create_params.CompletionCreateParamsNonStreaming, chat_create_params.CompletionCreateParamsStreaming),
    VLLM_SAMPLING + VLLM_CHAT,
    {"messages": _MESSAGES, "max_tokens": 2},
    {
        **_SHARED,
        **{"messages": _MESSAGES, "max_completion_tokens": 2, "logprobs": True, "modalities": ["text"]},
        "return_tokens_as_token_ids": With(True, {"logprobs": True}),
        "logprob_token_ids": With([40], {"logprobs": True}),
        "top_logprobs": With(2, {"logprobs": True}),
        **{"tools": [_TOOL], "tool_choice": With("auto", {"tools": [_TOOL]}), "parallel_tool_calls": False},
        **{"reasoning_effort": "low", "include_reasoning": False, "echo": True, "documents": [{"text": "a"}]},
        "add_generation_prompt": False,
        "continue_final_message": With(True, {"messages": [*_MESSAGES, {"role": "assistant", "content": "so"}]}),
        **{"chat_template": "{{ messages[0].content }}", "chat_template_kwargs": {"a": 1}},
        # not served
        **{"audio": {"voice": "alloy", "format": "wav"}, "prediction": {"type": "content", "content": "a"}},
        **{"web_search_options": {}, "functions": [{"name": "f"}], "function_call": {"name": "f"}},
        **{"verbosity": "low", "best_of": 2, "media_io_kwargs": {"a": {}}, "mm_processor_kwargs": {"a": 1}},
        "return_prompt_text": True,
    },
)
COMPLETIONS = Route(
    "/v1/completions",
    CompletionRequest,
    (
        completion_create_params.CompletionCreateParamsNonStreaming,
        completion_create_params.CompletionCreateParamsStreaming,
    ),
    VLLM_SAMPLING + "prompt_embeds",
    {"prompt": "hello", "max_tokens": 2},
    {**_SHARED, "prompt": [40, 41], "echo": True, "logprobs": 2, "best_of": 2, "suffix": "b"},
)
_FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
RESPONSES = Route(
    "/v1/responses",
    ResponsesRequest,
    (response_create_params.ResponseCreateParamsNonStreaming, response_create_params.ResponseCreateParamsStreaming),
    VLLM_RESPONSES,
    {"input": "hello", "max_output_tokens": 2},
    {
        **_SHARED,
        **{"input": "hello", "instructions": "be brief", "max_output_tokens": 2, "tools": [_FUNCTION]},
        "tool_choice": With("auto", {"tools": [_FUNCTION]}),
        **{"parallel_tool_calls": False, "max_tool_calls": 1, "text": {"format": {"type": "text"}}},
        **{"reasoning": {"effort": "low"}, "include": ["message.output_text.logprobs"], "top_logprobs": 2},
        **{"store": True, "background": False, "truncation": "disabled"},
        "stream_options": With({"include_obfuscation": False}, {"stream": True}),
        "previous_response_id": "resp_of_another_test",
        # not served
        **{"conversation": "c", "prompt": {"id": "p"}, "context_management": [{"type": "compaction"}]},
        **{"background_options": {"a": 1}, "image": {"a": 1}, "access_programs": {"a": 1}},
        **{"enable_response_messages": True, "previous_input_messages": [{"role": "user", "content": "a"}]},
        **{"previous_response": {"id": "r"}, "mm_processor_kwargs": {"a": 1}, "media_io_kwargs": {"a": {}}},
        **{"chat_template_kwargs": {"a": 1}, "include_reasoning": False},
    },
)
EMBEDDINGS = Route(
    "/v1/embeddings",
    EmbeddingRequest,
    (embedding_create_params.EmbeddingCreateParams,),
    VLLM_EMBEDDINGS,
    {"input": "hello"},
    {
        **{"model": "tiny", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 4, "user": "u"},
        **{"truncate_prompt_tokens": -1, "truncation_side": "left", "request_id": "r", "priority": 1},
        **{"cache_salt": "s", "use_activation": False, "add_special_tokens": False, "add_generation_prompt": True},
        **{"continue_final_message": False, "chat_template": "{{ x }}", "chat_template_kwargs": {"a": 1}},
        "messages": _MESSAGES,
        # not served
        **{"mm_processor_kwargs": {"a": 1}, "embed_dtype": "float16", "endianness": "big"},
        **{"padding": "max_length", "media_io_kwargs": {"a": {}}},
    },
)
ROUTES = (CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS)
ELSEWHERE = {
    "previous_response_id": "refused where it names nothing that is kept",
    "suffix": "for models that have tokens for it",
    "logits_processors": "refused where none of that name is installed",
    "vllm_xargs": "for logits processors that the request names",
    "documents": "where the chat template has a place for them",
    "thinking_token_budget": "where marks are known by which the model thinks",
    "chat_template": "where the router has --trust-request-chat-template",
}
"""Honoured fields that depend on more than the request, with what."""
