"""LangChain: invoke, streams, tools, structured output, an agent, embeddings, responses."""

from __future__ import annotations

import pydantic
import pytest
from conftest import ASK, KEY, SUM, Served
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings


class Pair(pydantic.BaseModel):
    """A thing and a title."""

    thing: str
    title: str


@tool
def get_weather(city: str) -> str:
    """Get the weather"""
    return '{"sky": "clear"}'


def chat_of(demo: Served, **others) -> ChatOpenAI:
    return ChatOpenAI(base_url=demo.v1, api_key=KEY, model=demo.model, temperature=0, **others)


@pytest.mark.parametrize("responses", [False, True])
def test_invoke_and_stream(demo, responses):
    chat = chat_of(demo, use_responses_api=responses)
    answer = chat.invoke(SUM[0])
    assert SUM[1] in answer.text
    assert answer.usage_metadata["output_tokens"]
    assert SUM[1] in "".join(chunk.text for chunk in chat.stream(SUM[0]))


@pytest.mark.parametrize("responses", [False, True])
def test_tools(demo, responses):
    chat = chat_of(demo, use_responses_api=responses).bind_tools([get_weather])
    assert chat.invoke(ASK).tool_calls[0]["args"] == {"city": "Paris"}


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output(demo, method):
    chat = chat_of(demo).with_structured_output(Pair, method=method)
    pair = chat.invoke("Return JSON with thing door and title rain.")
    assert isinstance(pair, Pair)
    if method != "function_calling":  # which words it calls with is the model's affair
        assert pair == Pair(thing="door", title="rain")


def test_agent(demo):
    agent = create_agent(chat_of(demo), tools=[get_weather])
    messages = agent.invoke({"messages": [("user", ASK)]})["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]


def test_embeddings(pooling):
    made = OpenAIEmbeddings(base_url=pooling.v1, api_key=KEY, model=pooling.model, check_embedding_ctx_length=False)
    assert [len(each) for each in made.embed_documents(["one", "two"])] == [64, 64]
    assert len(made.embed_query("one")) == 64
