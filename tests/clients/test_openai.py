"""openai-python: chat, streams, tools, structured output, responses, embeddings, completions."""

from __future__ import annotations

import asyncio
import json

import openai
import pydantic
import pytest
from conftest import ASK, KEY, SUM, WEATHER, Served


class Pair(pydantic.BaseModel):
    thing: str
    title: str


TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Get the weather", "parameters": WEATHER},
}
PAIR = "Return JSON with thing door and title rain."


@pytest.fixture
def client(demo: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=demo.v1, api_key=KEY)


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def test_chat(client, demo):
    answer = client.chat.completions.create(model=demo.model, messages=user(SUM[0]), temperature=0)
    assert SUM[1] in answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_stream(client, demo):
    with client.chat.completions.stream(
        model=demo.model, messages=user(SUM[0]), temperature=0, stream_options={"include_usage": True}
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert SUM[1] in final.choices[0].message.content
    assert final.usage.completion_tokens


def test_async_stream(demo):
    async def ask():
        async with openai.AsyncOpenAI(base_url=demo.v1, api_key=KEY) as client:
            stream = await client.chat.completions.create(
                model=demo.model, messages=user(SUM[0]), temperature=0, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert SUM[1] in asyncio.run(ask())


@pytest.mark.parametrize("stream", [False, True])
def test_tools(client, demo, stream):
    messages = user(ASK)
    ask = {"model": demo.model, "messages": messages, "tools": [TOOL], "temperature": 0}
    if stream:
        with client.chat.completions.stream(**ask) as events:
            message = events.get_final_completion().choices[0].message
    else:
        message = client.chat.completions.create(**ask).choices[0].message
    (call,) = message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    told = {"role": "assistant", "tool_calls": [call.model_dump(include={"id", "type", "function"})]}
    messages += [told, {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21, "sky": "clear"}'}]
    answer = client.chat.completions.create(**ask).choices[0].message
    assert answer.content
    assert not answer.tool_calls


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_forced_tools(client, demo, choice):
    answer = client.chat.completions.create(
        model=demo.model, messages=user(ASK), tools=[TOOL], tool_choice=choice, parallel_tool_calls=False, temperature=0
    )
    assert "city" in json.loads(answer.choices[0].message.tool_calls[0].function.arguments)


def test_structured_output(client, demo):
    answer = client.chat.completions.parse(model=demo.model, messages=user(PAIR), response_format=Pair, temperature=0)
    assert answer.choices[0].message.parsed == Pair(thing="door", title="rain")


def test_json_object(client, demo):
    answer = client.chat.completions.create(
        model=demo.model, messages=user(PAIR), response_format={"type": "json_object"}, temperature=0
    )
    assert json.loads(answer.choices[0].message.content)["thing"] == "door"


def test_completions(client, demo):
    answer = client.completions.create(model=demo.model, prompt="2+2=", temperature=0, logprobs=2, max_tokens=4)
    assert answer.choices[0].text.startswith("4")
    assert answer.choices[0].logprobs.token_logprobs


def test_responses(client, demo):
    first = client.responses.create(model=demo.model, input="My favourite fruit is apple.", temperature=0)
    then = client.responses.create(
        model=demo.model, input="Which fruit do I like most?", previous_response_id=first.id, temperature=0
    )
    assert "apple" in then.output_text
    assert client.responses.retrieve(first.id).output_text == first.output_text


def test_responses_stream(client, demo):
    with client.responses.stream(model=demo.model, input=SUM[0], temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text
    assert SUM[1] in text


def test_responses_parse(client, demo):
    assert client.responses.parse(model=demo.model, input=PAIR, text_format=Pair, temperature=0).output_parsed == Pair(
        thing="door", title="rain"
    )


def test_responses_tools(client, demo):
    tool = {"type": "function", "name": "get_weather", "description": "Get the weather", "parameters": WEATHER}
    ask = {"model": demo.model, "tools": [tool], "temperature": 0}
    items: list = [{"role": "user", "content": ASK}]
    first = client.responses.create(input=items, **ask)
    call = next(item for item in first.output if item.type == "function_call")
    assert json.loads(call.arguments) == {"city": "Paris"}
    items += [*first.output, {"type": "function_call_output", "call_id": call.call_id, "output": '{"sky": "clear"}'}]
    assert client.responses.create(input=items, **ask).output_text


@pytest.mark.parametrize("form", ["float", "base64", None])
def test_embeddings(pooling, form):
    client = openai.OpenAI(base_url=pooling.v1, api_key=KEY)
    given = {} if form is None else {"encoding_format": form}
    answer = client.embeddings.create(model=pooling.model, input=["one", "two"], **given)
    assert [each.index for each in answer.data] == [0, 1]
    if form != "base64":
        assert [len(each.embedding) for each in answer.data] == [64, 64]


def test_errors_are_those_of_the_sdk(client, demo):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=demo.model, messages=user("hi"), temperature=-1)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="none", messages=user("hi"))
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=demo.v1, api_key="wrong").models.list()
