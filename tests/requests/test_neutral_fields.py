"""What is null, a default or neutral counts as left out at every level; what asks for something not served says why."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from baton.errors import InvalidRequest
from baton.requests.chat import ChatRequest
from baton.requests.completions import CompletionRequest
from baton.requests.limits import Limits
from baton.requests.refusals import refuse_validation
from baton.requests.unserved import CHAT, COMPLETION

USER = {"role": "user", "content": "hi"}


def chat(*messages: Any, **fields: Any) -> ChatRequest:
    request = ChatRequest.model_validate_json(json.dumps({"messages": messages or [USER], **fields}))
    request.sampling_params()
    return request


def completion(**fields: Any) -> CompletionRequest:
    request = CompletionRequest.model_validate_json(json.dumps({"prompt": "hi"} | fields))
    request.sampling_params()
    return request


def refusal(*messages: Any, **fields: Any) -> InvalidRequest:
    try:
        chat(*messages, **fields)
    except ValidationError as error:
        return refuse_validation(error)
    except InvalidRequest as error:
        return error
    raise AssertionError("it was taken")


def meaning(request: ChatRequest | CompletionRequest) -> Any:
    """Return what becomes of a request."""
    return request.sampling_params(), request.for_template() if isinstance(request, ChatRequest) else request.prompt


# -- bodies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ask", "table"), [(chat, CHAT), (completion, COMPLETION)])
def test_null_is_left_out_in_every_field_and_so_is_what_asks_for_nothing(ask: Any, table: Any) -> None:
    plain = ask()
    fields = type(plain).model_fields
    nulls = {name: None for name in fields if not fields[name].is_required()} | dict.fromkeys(table)
    assert meaning(ask(**nulls)) == meaning(plain)
    for name, field in table.items():
        for value in field.neutral:
            assert meaning(ask(**{name: value})) == meaning(plain)


def test_an_unknown_field_is_refused_even_where_it_is_close_to_ours() -> None:
    error = refusal(cache_sallt="secret")
    assert error.code == "unknown_parameter"
    assert "cache_sallt='secret' is not valid" in str(error)
    assert "write cache_salt" in str(error)


def test_asking_for_scores_of_no_others_needs_no_scores() -> None:
    assert chat(top_logprobs=0).sampling_params().logprobs is None
    assert refusal(top_logprobs=1).field == "top_logprobs"


def test_options_of_a_stream_that_ask_for_nothing_need_no_stream() -> None:
    chat(stream_options={})
    chat(stream_options={"include_usage": False, "include_obfuscation": None})
    assert refusal(stream_options={"include_usage": True}).field == "stream_options"


def test_a_format_that_is_text_is_no_format() -> None:
    chat(response_format={"type": "text", "json_schema": None})
    assert chat(response_format={"type": "text"}).structured_outputs is None


@pytest.mark.parametrize(
    ("field", "value"), [("max_tokens", 5), ("n", 3), ("top_k", 7), ("seed", -4), ("priority", 0), ("min_tokens", 1)]
)
def test_a_whole_number_may_be_written_with_a_point(field: str, value: int) -> None:
    assert getattr(chat(**{field: float(value)}), field) == value
    for wrong in (value + 0.5, str(value), True, [value]):
        assert refusal(**{field: wrong}).field == field


def test_token_ids_may_be_written_with_a_point() -> None:
    assert completion(prompt=[1.0, 2], stop_token_ids=[3.0]).sampling_params().stop_token_ids == (3,)
    assert completion(prompt=[[1.0], [2]]).prompt == [[1], [2]]
    with pytest.raises(ValidationError):
        completion(prompt=[1.5])


def test_a_router_sets_how_many_choices_prompts_and_stop_strings_it_takes() -> None:
    request = completion(prompt=["a"] * 4, n=4, stop=["x"] * 4)
    assert request.sampling_params(Limits(16, 4, 4)).n == 4
    for limits, words in (
        (Limits(15, 4, 4), "n=4 .*4 prompts times n may be at most 15.*--max-choices"),
        (Limits(16, 3, 4), "prompt='4 prompts'.*at most 3.*--max-prompts"),
        (Limits(16, 4, 3), "stop='4 strings'.*at most 3.*--max-stop-strings"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            request.sampling_params(limits)
    assert chat(n=128).sampling_params().n == 128
    assert refusal(n=129).field == "n"


def test_scores_of_prompts_are_bounded_by_prompts_alternatives_and_choices_together() -> None:
    limits = Limits(max_prompt_scores=21_000)
    many = completion(prompt_logprobs=20, n=10).sampling_params()
    limits.check_scores(many, num_prompt_tokens=100)
    with pytest.raises(
        InvalidRequest, match=r"prompt_logprobs=20 .*101 tokens .*n=10 .*21210 scores.*--max-prompt-scores"
    ):
        limits.check_scores(many, num_prompt_tokens=101)
    echoed = completion(prompt="a", echo=True, logprobs=1).sampling_params()
    with pytest.raises(InvalidRequest, match="prompt_logprobs=1 "):
        limits.check_scores(echoed, num_prompt_tokens=10_501)
    limits.check_scores(completion(logprobs=20).sampling_params(), num_prompt_tokens=10**9)


def test_bad_words_are_bounded_together() -> None:
    assert completion(bad_words=["x" * 32] * 1024).sampling_params().bad_words
    with pytest.raises(ValidationError, match="at most 32768 characters are taken in all"):
        completion(bad_words=["x" * 33] * 1024)


# -- messages -----------------------------------------------------------------------------------------------------

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    "message",
    [
        {"name": None, "tool_calls": None, "tool_call_id": None, "audio": None, "function_call": None, "images": []},
        {"reasoning_details": [{"x": 1}], "provider_specific_fields": {"a": 1}, "refusal": None, "annotations": []},
        {
            "cache_control": {"type": "ephemeral"},
            "extra_content": {"google": {}},
            "thinking_blocks": [],
            "parsed": None,
        },
        {"content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}, "annotations": []}]},
        {"content": [{"type": "text", "text": "hi", "image_url": None}]},
        {"content": [{"text": "hi"}]},
        {"tool_calls": [], "tools": [], "prefix": False},
    ],
)
def test_keys_beside_a_messages_own_that_change_nothing_are_ignored(message: dict[str, Any]) -> None:
    for role in ("user", "assistant"):
        shown = chat({"role": role, "content": "hi"} | message).for_template()["messages"][0]
        assert shown in ({"role": role, "content": "hi"}, {"role": role, "content": [{"type": "text", "text": "hi"}]})


def test_an_answer_of_the_sdk_and_its_calls_results_are_taken_back() -> None:
    call = CALL | {"index": 0, "extra_content": {"google": {"thought_signature": "x"}}}
    call["function"] = call["function"] | {"parsed_arguments": {}}  # type: ignore[operator]
    answer = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call], "parsed": None}
    messages = [USER, answer, {"role": "tool", "tool_call_id": "c1", "content": None}]
    shown = chat(*messages).for_template()["messages"]
    assert shown[1]["tool_calls"] == [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    assert shown[2] == {"role": "tool", "tool_call_id": "c1", "content": None}


@pytest.mark.parametrize("arguments", [None, "", {}])
def test_a_call_without_arguments_has_none(arguments: Any) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    shown = chat(USER, {"role": "assistant", "tool_calls": [call]}).for_template()["messages"][1]
    assert shown["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}


def test_a_refusal_is_text() -> None:
    shown = chat(USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}).for_template()
    assert shown["messages"][1]["content"] == [{"type": "text", "text": "No."}]


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


@pytest.mark.parametrize(
    ("message", "field", "words"),
    [
        ({"content": [{"type": "text", "text": "x"}, PICTURE]}, "content[1].type", "pictures are not served yet"),
        ({"content": [{"type": "text", "text": "x", "image_url": {}}]}, "content[0].image_url", "pictures"),
        ({"content": [{"type": "input_audio", "input_audio": {}}]}, "content[0].type", "audio is not served"),
        ({"content": [{"type": "video_url"}]}, "content[0].type", "videos are not served"),
        ({"content": [{"type": "file", "file": {}}]}, "content[0].type", "send their text"),
        ({"content": [{"type": "poem", "poem": "x"}]}, "content[0].type", "not known"),
        ({"content": [{"type": "text"}]}, "content[0].text", "missing"),
        ({"content": [{"type": "text", "text": 5}]}, "content[0].text", "valid string"),
        ({"content": ["x"]}, "content[0]", "an object"),
        ({"content": 5}, "content", "a text or a list of parts"),
        ({"content": {"type": "text", "text": "x"}}, "content", "a text or a list of parts"),
        ({"content": None}, "content", "missing"),
        ({"role": "king"}, "role", "'assistant'"),
        ({"nmae": "x"}, "nmae", "write name"),
        ({"images": ["AA=="]}, "images", "pictures"),
        ({"prefix": True}, "prefix", "continue_final_message"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "function_call", "tool_calls"),
        ({"tool_calls": [{"type": "custom", "custom": {}}]}, "tool_calls[0].type", "'function'"),
        (
            {"tool_calls": [CALL | {"function": {"name": "f", "arguments": 5}}]},
            "tool_calls[0].function.arguments",
            "object",
        ),
    ],
)
def test_what_a_message_asks_for_and_is_not_served_is_named_where_it_stands(
    message: dict[str, Any], field: str, words: str
) -> None:
    error = refusal(USER, USER | message)
    assert error.field == f"messages[1].{field}"
    assert str(error).startswith(error.field)
    assert words in str(error)


@pytest.mark.parametrize(
    ("tool", "field"),
    [
        ({"type": "custom", "custom": {"name": "f"}}, "tools[0].type"),
        ({"function": {"name": "f"}, "defer_loading": True}, "tools[0].defer_loading"),
        ({"function": {"name": "f", "paramaters": {}}}, "tools[0].function.paramaters"),
    ],
)
def test_a_tool_that_is_not_served_is_named(tool: dict[str, Any], field: str) -> None:
    assert refusal(tools=[tool]).field == field


def test_keys_beside_a_tools_own_that_change_nothing_are_not_shown_to_the_model() -> None:
    function = {"name": "f", "parameters": {"type": "object"}, "defer_loading": None}
    tool = {"type": "function", "function": function, "cache_control": {}, "strict": False, "defer_loading": False}
    shown = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    assert chat(tools=[tool]).for_template()["tools"] == [shown]
