"""LiteLLM, as `openai/` and as `hosted_vllm/`: chat, streams, tools, structured output, embeddings, responses, rerank."""

from __future__ import annotations

import json

import litellm
import pytest
from conftest import ASK, KEY, SUM, WEATHER, Served

PROVIDERS = ["openai", "hosted_vllm"]
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Get the weather", "parameters": WEATHER},
}


def of(served: Served, provider: str) -> dict:
    return {"model": f"{provider}/{served.model}", "api_base": served.v1, "api_key": KEY}


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_chat_and_stream(demo, provider):
    answer = litellm.completion(messages=user(SUM[0]), temperature=0, **of(demo, provider))
    assert SUM[1] in answer.choices[0].message.content
    stream = litellm.completion(messages=user(SUM[0]), temperature=0, stream=True, **of(demo, provider))
    assert SUM[1] in "".join(chunk.choices[0].delta.content or "" for chunk in stream)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_tools(demo, provider):
    answer = litellm.completion(messages=user(ASK), tools=[TOOL], temperature=0, **of(demo, provider))
    assert json.loads(answer.choices[0].message.tool_calls[0].function.arguments) == {"city": "Paris"}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_structured_output(demo, provider):
    schema = {
        "type": "object",
        "properties": {"thing": {"type": "string"}, "title": {"type": "string"}},
        "required": ["thing", "title"],
        "additionalProperties": False,
    }
    answer = litellm.completion(
        messages=user("Return JSON with thing door and title rain."),
        response_format={"type": "json_schema", "json_schema": {"name": "pair", "schema": schema, "strict": True}},
        temperature=0,
        **of(demo, provider),
    )
    assert json.loads(answer.choices[0].message.content) == {"thing": "door", "title": "rain"}


def test_text_completion(demo):
    answer = litellm.text_completion(
        model=f"text-completion-openai/{demo.model}",
        prompt="2+2=",
        api_base=demo.v1,
        api_key=KEY,
        temperature=0,
        max_tokens=4,
    )
    assert answer.choices[0].text.startswith("4")


def test_responses(demo):
    answer = litellm.responses(input=SUM[0], temperature=0, **of(demo, "openai"))
    assert SUM[1] in answer.output[0].content[0].text


def test_anthropic_messages(demo):
    import asyncio

    answer = asyncio.run(
        litellm.anthropic.messages.acreate(
            messages=user(SUM[0]), max_tokens=32, model=f"anthropic/{demo.model}", api_base=demo.url, api_key=KEY
        )
    )
    assert SUM[1] in answer["content"][0]["text"]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_embeddings(pooling, provider):
    answer = litellm.embedding(input=["one", "two"], **of(pooling, provider))
    assert [len(each["embedding"]) for each in answer.data] == [64, 64]
