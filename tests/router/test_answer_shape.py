"""Answers have the shape that clients of OpenAI and vLLM rely on: which events there are, and which keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from .cluster import Cluster, cluster

MESSAGES = [{"role": "user", "content": "hello"}]
COUNTED = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with cluster(tmp_path_factory.mktemp("shape"), [{"worker_id": "d0"}]) as made, _client(made) as client:
        yield client


@pytest.fixture(scope="module")
def sdk(http: httpx.Client) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{http.base_url}/v1", api_key=http.headers["authorization"].split()[1])


def _client(made: Cluster) -> httpx.Client:
    return httpx.Client(base_url=made.url, headers={"authorization": f"Bearer {made.client().api_key}"})


def events(http: httpx.Client, path: str, **body: Any) -> list[Any]:
    lines = http.post(path, json=body).raise_for_status().text.splitlines()
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    return [json.loads(each) for each in data]


@pytest.mark.parametrize("n", [1, 3])
def test_a_completion_has_one_event_a_token_and_the_last_says_how_it_ended(http: httpx.Client, n: int) -> None:
    streamed = events(http, "/v1/completions", prompt=[11, 12, 13], max_tokens=4, ignore_eos=True, stream=True, n=n)
    for index in range(n):
        choices = [event["choices"][0] for event in streamed if event["choices"][0]["index"] == index]
        assert [choice["finish_reason"] for choice in choices] == [None, None, None, "length"]
        assert all(choice.keys() >= {"logprobs", "stop_reason", "token_ids"} for choice in choices)


def test_a_chat_has_the_role_then_one_event_a_token(http: httpx.Client) -> None:
    first, *others = events(http, "/v1/chat/completions", messages=MESSAGES, max_tokens=4, ignore_eos=True, stream=True)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert first["prompt_token_ids"] is None
    assert [event["choices"][0]["finish_reason"] for event in others] == [None, None, None, "length"]


@pytest.mark.parametrize("extra", [{}, {"logprobs": True}, {"return_token_ids": True}])
def test_usage_in_each_event_counts_none_at_the_role(http: httpx.Client, extra: dict[str, Any]) -> None:
    streamed = events(
        http, "/v1/chat/completions", messages=MESSAGES, max_tokens=3, ignore_eos=True, **COUNTED, **extra
    )
    assert [event["usage"]["completion_tokens"] for event in streamed] == [0, 1, 2, 3, 3]
    assert streamed[0]["usage"]["total_tokens"] == streamed[0]["usage"]["prompt_tokens"]


def test_an_echoed_prompt_counts_none(http: httpx.Client) -> None:
    streamed = events(http, "/v1/completions", prompt="hello", max_tokens=2, ignore_eos=True, echo=True, **COUNTED)
    assert [event["usage"]["completion_tokens"] for event in streamed] == [0, 1, 2, 2]


@pytest.mark.parametrize("echo", [False, True])
def test_streamed_token_ids_equal_those_of_the_body(http: httpx.Client, echo: bool) -> None:
    asked = {"prompt": "hello", "max_tokens": 3, "seed": 5, "return_token_ids": True, "echo": echo}
    body = http.post("/v1/completions", json=asked).json()["choices"][0]
    choices = [event["choices"][0] for event in events(http, "/v1/completions", **asked, stream=True)]
    assert [token for choice in choices for token in choice["token_ids"]] == body["token_ids"]
    assert choices[0]["prompt_token_ids"] == body["prompt_token_ids"]
    assert "".join(choice["text"] for choice in choices) == body["text"]


def test_a_chats_stream_gives_the_prompts_ids_with_the_role(http: httpx.Client) -> None:
    asked = {"messages": MESSAGES, "max_tokens": 2, "return_token_ids": True}
    body = http.post("/v1/chat/completions", json=asked).json()
    first, *_ = events(http, "/v1/chat/completions", **asked, **COUNTED)
    assert first["prompt_token_ids"] == body["prompt_token_ids"]
    assert first["usage"]["completion_tokens"] == 0


def test_keys_that_vllm_always_sends_are_there(http: httpx.Client) -> None:
    chat = http.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 2}).json()
    assert chat.keys() >= {"service_tier", "system_fingerprint", "prompt_logprobs", "prompt_token_ids"}
    assert chat["choices"][0].keys() >= {"prompt_logprobs", "token_ids", "stop_reason", "logprobs"}
    message = chat["choices"][0]["message"]
    assert (message["reasoning"], message["refusal"], message["tool_calls"]) == (None, None, [])
    completion = http.post("/v1/completions", json={"prompt": "hello", "max_tokens": 2}).json()
    assert completion["choices"][0].keys() >= {"prompt_logprobs", "token_ids", "prompt_token_ids", "stop_reason"}


def test_a_models_root_is_its_name_and_no_path(http: httpx.Client) -> None:
    card = http.get("/v1/models").json()["data"][0]
    assert card["root"] == card["id"]


def test_a_given_id_stands_in_the_answer(http: httpx.Client) -> None:
    body = http.post("/v1/completions", json={"prompt": "hello", "max_tokens": 1, "request_id": "mine"}).json()
    assert body["id"] == "cmpl-mine"


def test_an_answer_may_be_sent_back_as_the_sdk_gives_it(http: httpx.Client, sdk: openai.OpenAI) -> None:
    asked: list[Any] = [{"role": "user", "content": "hello"}]
    for _ in range(2):
        message = sdk.chat.completions.create(model="tiny", messages=asked, max_tokens=2).choices[0].message
        asked += [message, message.model_dump(), {"role": "user", "content": "and?"}]
    body = http.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 2}).json()
    again = [*MESSAGES, body["choices"][0]["message"], *MESSAGES]
    assert http.post("/v1/chat/completions", json={"messages": again, "max_tokens": 2}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/completions", {"prompt": [5] * 9000}, "prompt"),
        ("/v1/completions", {"prompt": "hi", "max_tokens": 100_000}, "max_tokens"),
        ("/v1/completions", {"prompt": "hi", "max_tokens": 200_000, "min_tokens": 100_000}, "max_tokens"),
        ("/v1/chat/completions", {"messages": MESSAGES, "min_tokens": 100_000}, "min_tokens"),
        ("/v1/chat/completions", {"messages": MESSAGES, "max_completion_tokens": 100_000}, "max_completion_tokens"),
    ],
)
def test_what_the_context_does_not_hold_is_refused_in_the_words_that_clients_look_for(
    http: httpx.Client, path: str, body: dict[str, Any], field: str
) -> None:
    answer = http.post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", field)
    assert "this model's maximum context length is " in error["message"]
