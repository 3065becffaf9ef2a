"""Calls that are forced, over prefill and decode workers, with the real SDK: named, required, streamed, and sent back."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import openai
import pytest
from tests.cluster import MODEL, Cluster

WEATHER = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "$defs": {"City": {"enum": ["Paris", "Rome"]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
NOW = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMAS = {"weather": WEATHER, "now": NOW}
TOOLS: Any = [{"type": "function", "function": {"name": n, "parameters": s}} for n, s in SCHEMAS.items()]
MESSAGES: Any = [{"role": "user", "content": "How is the weather?"}]
NAMED: Any = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture
def client(cluster: Cluster) -> openai.OpenAI:
    return cluster.client("1p1d")


def ask(client: openai.OpenAI, choice: Any, **more: Any) -> Any:
    settings: dict[str, Any] = {
        "model": MODEL,
        "messages": MESSAGES,
        "tools": TOOLS,
        "max_tokens": 120,
        "seed": 5,
    } | more
    return client.chat.completions.create(tool_choice=choice, **settings)


def streamed(client: openai.OpenAI, choice: Any, **more: Any) -> tuple[list[tuple[str, str]], str]:
    """Return the calls of a stream, and why it ended."""
    calls: list[list[str]] = []
    text, reason = "", ""
    for chunk in ask(client, choice, stream=True, **more):
        delta, reason = chunk.choices[0].delta, chunk.choices[0].finish_reason or reason
        text += delta.content or ""
        for call in delta.tool_calls or ():
            if call.index == len(calls):
                assert call.id
                calls.append([call.function.name, ""])
            calls[call.index][1] += call.function.arguments or ""
    assert text == ""
    return [(name, arguments) for name, arguments in calls], reason


def test_a_named_function_is_called_with_arguments_of_its_schema(client: openai.OpenAI) -> None:
    choice = ask(client, NAMED).choices[0]
    (call,) = choice.message.tool_calls
    assert (call.function.name, choice.message.content, choice.finish_reason) == ("weather", None, "stop")
    jsonschema.validate(json.loads(call.function.arguments), WEATHER)
    assert streamed(client, NAMED) == ([("weather", call.function.arguments)], "stop")


@pytest.mark.parametrize("seed", [1, 2])
def test_required_gives_one_call_at_least(client: openai.OpenAI, seed: int) -> None:
    one = {"seed": seed, "parallel_tool_calls": False}
    choice = ask(client, "required", **one).choices[0]
    (call,) = choice.message.tool_calls
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    assert streamed(client, "required", **one) == ([(call.function.name, call.function.arguments)], "tool_calls")


def test_a_forced_call_leaves_no_text_for_response_format(client: openai.OpenAI) -> None:
    choice = ask(client, NAMED, response_format={"type": "json_object"}).choices[0]
    assert choice.message.tool_calls[0].function.name == "weather"


def test_calls_and_their_results_are_sent_back(client: openai.OpenAI) -> None:
    message = ask(client, NAMED).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
    for stream in (False, True):
        assert ask(client, "auto", messages=[*MESSAGES, message, result], max_tokens=4, stream=stream)


def test_strict_functions_leave_text_free(client: openai.OpenAI) -> None:
    strict = [{"type": "function", "function": tool["function"] | {"strict": True}} for tool in TOOLS]
    choice = ask(client, "auto", tools=strict, max_tokens=20).choices[0]
    assert choice.message.content
    assert not choice.message.tool_calls
    broken = {"name": "f", "strict": True, "parameters": {"type": "object", "not": {}}}
    with pytest.raises(openai.BadRequestError, match="tools=") as refused:
        ask(client, "auto", tools=[{"type": "function", "function": broken}])
    assert refused.value.param == "tools"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": []}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"extra_body": {"guided_choice": ["a"]}}, "guided_choice"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "not": {}}}}]},
            "tools",
        ),
    ],
    ids=str,
)
def test_a_choice_that_cannot_be_held_to_is_refused(client: openai.OpenAI, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **({"choice": fields.pop("tool_choice", "required")} | fields))
    body: Any = refused.value.body
    assert str(body["param"]).startswith(param)
