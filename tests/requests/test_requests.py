"""The request model is closed: each wrong field, type or range is refused by name."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from baton.errors import InvalidRequest
from baton.requests.chat import ChatRequest
from baton.requests.completions import CompletionRequest
from baton.requests.refusals import refuse_validation
from baton.requests.sampling import Ignored
from baton.requests.tokenize import DetokenizeRequest

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"prompt": "hi"}


def refusal(model: Any, body: Any) -> InvalidRequest:
    """Give the refusal of a body."""
    text = body if isinstance(body, (str, bytes)) else json.dumps(body)
    try:
        model.model_validate_json(text).sampling_params()
    except ValidationError as error:
        return refuse_validation(error)
    except InvalidRequest as error:
        return error
    raise AssertionError(f"it was taken: {text[:200]!r}")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 101),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 1.5),
        ("min_p", 2),
        ("n", 0),
        ("n", 129),
        ("n", "2"),
        ("seed", 2**63),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("min_tokens", -1),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("repetition_penalty", 0),
        ("stop", ""),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stop", 3),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", ["a"]),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"1": True}),
        ("logit_bias", [1]),
        ("allowed_token_ids", []),
        ("bad_words", [""]),
        ("ignore_eos", "yes"),
        ("stream", "yes"),
        ("stream_options", {"include_usage": "yes"}),
        ("stream_options", {"unknown": 1}),
        ("prompt_logprobs", 21),
        ("response_format", {"type": "json_schema"}),
        ("response_format", {"type": "json_schema", "json_schema": {}}),
        ("response_format", {"type": "yaml"}),
        ("store", True),
        ("model", 3),
        ("user", 3),
        ("kv_transfer_params", {"remote_host": "evil"}),
        ("unknown_field", 1),
        ("cache_salt", ""),
        ("priority", 2**40),
        ("seed", 10**400),
    ],
)
@pytest.mark.parametrize(("model", "body"), [(ChatRequest, CHAT), (CompletionRequest, COMPLETION)])
def test_a_wrong_field_is_refused_by_name(model: Any, body: dict[str, Any], field: str, value: Any) -> None:
    error = refusal(model, {**body, field: value})
    assert error.status == 400
    assert error.field is not None
    assert error.field.startswith(field)
    assert field in str(error)


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": []},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "emperor", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
        {"messages": [{"role": "user", "content": "x", "extra": 1}]},
        {"messages": "hi"},
        {"messages": None},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"tool_choice": "perhaps"},
        {"tools": [{"type": "retrieval"}]},
        {"top_logprobs": 3},
        {"logprobs": 3},
        {"logprobs": True, "top_logprobs": 21},
        {"modalities": ["audio"]},
        {"max_tokens": 0},
        {"max_completion_tokens": 0},
        {"min_tokens": 5, "max_tokens": 4},
        {"chat_template": ""},
        {"documents": [{"text": 5}]},
        {"truncate_prompt_tokens": 0},
        {"truncation_side": "middle"},
        {"stream_options": {"include_usage": True}},
        {"functions": [{"name": "f"}]},
    ],
)
def test_a_wrong_chat_is_refused(changes: dict[str, Any]) -> None:
    error = refusal(ChatRequest, CHAT | changes)
    assert error.status == 400
    assert error.field


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": [1, "a"]},
        {"prompt": None},
        {"prompt": ["x"] * 65},
        {"prompt": ["x"] * 20, "n": 7},
        {"max_tokens": 0},
        {"logprobs": 21},
        {"logprobs": True},
        {"n": 3, "best_of": 2},
        {"best_of": 2, "stream": True},
        {"use_beam_search": True, "n": 33},
        {"prompt": [1], "suffix": "x"},
        {"suffix": "x", "echo": True},
        {"messages": []},
    ],
)
def test_a_wrong_completion_is_refused(changes: dict[str, Any]) -> None:
    assert refusal(CompletionRequest, COMPLETION | changes).status == 400


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"x"', "{}", '{"prompt": NaN}', '{"prompt":"\\ud800"}', "[" * 9999]
)
def test_a_body_that_is_no_request_is_refused(text: str) -> None:
    assert refusal(CompletionRequest, text).status == 400


def test_of_many_wrong_entries_the_first_is_told() -> None:
    """Telling of each held the router for tens of seconds."""
    bad = [{"x": 1}] * 10_000
    for body, field in (
        ({"messages": bad}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": bad}]}, "messages[0].content[0].x"),
        ({"messages": [{"role": "assistant", "tool_calls": bad}]}, "messages[0].tool_calls[0].function"),
        (CHAT | {"tools": bad}, "tools[0].function"),
    ):
        with pytest.raises(ValidationError) as caught:
            ChatRequest.model_validate_json(json.dumps(body))
        assert caught.value.error_count() <= 2
        assert refuse_validation(caught.value).field == field
    with pytest.raises(ValidationError) as caught:
        DetokenizeRequest.model_validate({"tokens": ["a"] * 10_000})
    assert caught.value.error_count() == 1


def test_a_name_of_megabytes_is_cut() -> None:
    error = refusal(ChatRequest, CHAT | {"x" * 2**20: 1})
    assert len(str(error)) < 400


def test_not_a_number_is_refused() -> None:
    assert refusal(CompletionRequest, '{"prompt": "x", "temperature": NaN}').field == "temperature"
    assert refusal(CompletionRequest, '{"prompt": "x", "top_p": Infinity}').field == "top_p"


def test_fields_without_effect_are_taken() -> None:
    values = {"metadata": {}, "prompt_cache_options": {}, "return_mm_kwargs": True, "parallel_tool_calls": True}
    body = (
        CHAT
        | {name: values.get(name, "x") for name in [*Ignored.model_fields, "parallel_tool_calls"]}
        | {"store": False}
    )
    ChatRequest.model_validate_json(json.dumps(body)).sampling_params()


def test_what_is_unserved_says_why() -> None:
    for model, body in ((ChatRequest, CHAT), (CompletionRequest, COMPLETION)):
        for name, field in model.unserved.items():
            assert field.reason in str(refusal(model, body | {name: "something"}))


def test_every_field_reaches_the_engine() -> None:
    sent = {
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "seed": 7,
        "stop": "x",
        "stop_token_ids": [3],
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "logit_bias": {"4": 1.5},
        "min_tokens": 1,
        "max_tokens": 9,
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "prompt_logprobs": 1,
        "allowed_token_ids": [4, 5],
        "bad_words": ["no"],
    }
    for model, body in ((ChatRequest, CHAT), (CompletionRequest, COMPLETION)):
        params = model.model_validate_json(json.dumps(body | sent)).sampling_params()
        expected = sent | {
            "stop": ("x",),
            "stop_token_ids": (3,),
            "logit_bias": {4: 1.5},
            "allowed_token_ids": (4, 5),
            "bad_words": ("no",),
        }
        assert {name: getattr(params, name) for name in sent} == expected


def test_defaults_are_those_of_the_api() -> None:
    assert ChatRequest.model_validate_json(json.dumps(CHAT)).sampling_params().max_tokens is None
    assert CompletionRequest.model_validate_json(json.dumps(COMPLETION)).sampling_params().max_tokens == 16


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(ChatRequest.model_fields)), _json)
def test_any_value_in_any_field_is_taken_or_refused(field: str, value: Any) -> None:
    body = CHAT | {field: value}
    try:
        ChatRequest.model_validate_json(json.dumps(body)).sampling_params()
    except (ValidationError, InvalidRequest):
        assert refusal(ChatRequest, body).field
