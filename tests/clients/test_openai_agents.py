"""openai-agents: runs with tools, streams, handoffs of structured output, by chat and by responses."""

from __future__ import annotations

import asyncio

import openai
import pydantic
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from conftest import ASK, KEY, SUM, Served

set_tracing_disabled(True)
MODELS = [OpenAIChatCompletionsModel, OpenAIResponsesModel]


class Pair(pydantic.BaseModel):
    thing: str
    title: str


def agent_of(demo: Served, kind, tool_choice=None, **others) -> Agent:
    client = openai.AsyncOpenAI(base_url=demo.v1, api_key=KEY)
    model = kind(model=demo.model, openai_client=client)
    settings = ModelSettings(temperature=0, tool_choice=tool_choice, parallel_tool_calls=False if tool_choice else None)
    return Agent(name="demo", model=model, model_settings=settings, **others)


@pytest.mark.parametrize("kind", MODELS)
def test_run_and_stream(demo, kind):
    async def both() -> tuple[str, str]:
        whole = await Runner.run(agent_of(demo, kind), SUM[0])
        streamed = Runner.run_streamed(agent_of(demo, kind), SUM[0])
        async for _event in streamed.stream_events():
            pass
        return whole.final_output, streamed.final_output

    whole, streamed = asyncio.run(both())
    assert SUM[1] in whole
    assert streamed == whole


@pytest.mark.parametrize("kind", MODELS)
def test_agent_loop(demo, kind):
    asked = []

    @function_tool
    def get_weather(city: str) -> str:
        """Get the weather"""
        asked.append(city)
        return '{"sky": "clear"}'

    answer = asyncio.run(Runner.run(agent_of(demo, kind, "required", tools=[get_weather]), ASK))
    assert asked == ["Paris"]
    assert answer.final_output


@pytest.mark.parametrize("kind", MODELS)
def test_structured_output(demo, kind):
    agent = agent_of(demo, kind, output_type=Pair)
    assert asyncio.run(Runner.run(agent, "Return JSON with thing door and title rain.")).final_output == Pair(
        thing="door", title="rain"
    )
