"""pydantic-ai: an agent's runs, streams and outputs, by chat and by responses."""

from __future__ import annotations

import asyncio

import pydantic
import pytest
from conftest import KEY, SUM, Served
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


class Pair(pydantic.BaseModel):
    thing: str
    title: str


MODELS = [OpenAIChatModel, OpenAIResponsesModel]


def agent_of(demo: Served, kind, **others) -> Agent:
    model = kind(demo.model, provider=OpenAIProvider(base_url=demo.v1, api_key=KEY))
    return Agent(model, model_settings={"temperature": 0, "parallel_tool_calls": False}, **others)


@pytest.mark.parametrize("kind", MODELS)
def test_run_and_stream(demo, kind):
    agent = agent_of(demo, kind)
    assert SUM[1] in agent.run_sync(SUM[0]).output

    async def stream() -> str:
        async with agent.run_stream(SUM[0]) as answer:
            return await answer.get_output()

    assert SUM[1] in asyncio.run(stream())


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("output", [NativeOutput, ToolOutput])
def test_structured_output(demo, kind, output):
    agent = agent_of(demo, kind, output_type=output(Pair))
    assert isinstance(agent.run_sync("Return JSON with thing door and title rain.").output, Pair)
