"""anthropic-sdk-python: messages, streams, tools, token counts."""

from __future__ import annotations

import anthropic
import pytest
from conftest import ASK, KEY, SUM, WEATHER, Served

TOOL = {"name": "get_weather", "description": "Get the weather", "input_schema": WEATHER}


@pytest.fixture
def client(demo: Served) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=demo.url, api_key=KEY)


def ask_of(demo: Served, text: str, **others):
    return {
        "model": demo.model,
        "max_tokens": 64,
        "extra_body": {"temperature": 0},
        **others,
        "messages": [{"role": "user", "content": text}],
    }


def test_messages(client, demo):
    answer = client.messages.create(**ask_of(demo, SUM[0]))
    assert SUM[1] in answer.content[0].text
    assert answer.stop_reason == "end_turn"


def test_stream(client, demo):
    with client.messages.stream(**ask_of(demo, SUM[0])) as stream:
        text = "".join(stream.text_stream)
        assert stream.get_final_message().usage.output_tokens
    assert SUM[1] in text


@pytest.mark.parametrize("stream", [False, True])
def test_tools(client, demo, stream):
    ask = ask_of(demo, ASK, tools=[TOOL])
    if stream:
        with client.messages.stream(**ask) as events:
            answer = events.get_final_message()
    else:
        answer = client.messages.create(**ask)
    assert answer.stop_reason == "tool_use"
    call = answer.content[-1]
    assert call.input == {"city": "Paris"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": '{"sky": "clear"}'}
    ask["messages"] += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    assert client.messages.create(**ask).content[0].text


def test_tool_runner(client, demo):
    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Get the weather

        Args:
            city: The city
        """
        return '{"sky": "clear"}'

    runner = client.beta.messages.tool_runner(tools=[get_weather], **ask_of(demo, ASK))
    assert runner.until_done().stop_reason == "end_turn"


def test_counts(client, demo):
    ask = ask_of(demo, SUM[0])
    del ask["max_tokens"], ask["extra_body"]
    assert client.messages.count_tokens(**ask).input_tokens > 5


def test_errors_are_those_of_the_sdk(client, demo):
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(**ask_of(demo, "hi", max_tokens=-1))
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=demo.url, api_key="wrong").messages.create(**ask_of(demo, "hi"))
