"""Answers of a given form over prefill and decode workers equal the offline LLM's, and go on through a worker's death."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pydantic
import pytest
from tests.cluster import MODEL, Answer, Cluster, prompt_of, stream
from tests.processes import HANG_S

from baton.llm import SamplingParams, StructuredOutputsParams
from baton.thinking import Thinking

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{3,9}$"},
        "sizes": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 99},
            "minItems": 2,
            "maxItems": 4,
        },
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "sizes", "kind"],
    "additionalProperties": False,
}
FORM: dict[str, Any] = {"json": SCHEMA, "disable_any_whitespace": True}
SEEDED: dict[str, Any] = {"temperature": 1.0, "seed": 17, "max_tokens": 100}


@pytest.fixture(autouse=True)
def nothing_is_left(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.revive()
    cluster.assert_quiet()


def offline(cluster: Cluster, prompts: list[list[int]], n: int = 1) -> list[list[list[int]]]:
    params = SamplingParams(structured_outputs=StructuredOutputsParams(**FORM), n=n, **SEEDED)
    return [[choice.ids for choice in choices] for choices in cluster.offline(prompts, params)]


@pytest.mark.parametrize("path", ["1p1d", "0p1d", "2p2d"])
def test_answers_of_a_form_equal_the_offline_ones(cluster: Cluster, path: str) -> None:
    prompt = prompt_of(31, 70)
    answers = cluster.complete(path, prompt, structured_outputs=FORM, n=3, ignore_eos=False, **SEEDED)
    assert [[answer.ids for answer in answers]] == offline(cluster, [prompt], n=3)
    for answer in answers:
        jsonschema.validate(json.loads(answer.text), SCHEMA)
        assert answer.finish_reason == "stop"


def test_answers_of_a_form_go_on_through_a_decode_worker_s_death(cluster: Cluster) -> None:
    prompts = [prompt_of(500 + i, 20 + 7 * i) for i in range(12)]

    async def run() -> list[Answer]:
        begun: set[int] = set()
        enough = asyncio.Event()

        async def one(client: Any, i: int) -> Answer:
            def on_token(answer: Answer) -> None:
                if len(answer.ids) >= 5:
                    begun.add(i)
                    if len(begun) >= 6:
                        enough.set()

            return await stream(client, prompts[i], on_token, structured_outputs=FORM, ignore_eos=False, **SEEDED)

        async with cluster.async_client("2p2d") as client:
            streams = [asyncio.create_task(one(client, i)) for i in range(len(prompts))]
            await enough.wait()
            cluster.workers["d0"].kill()
            return list(await asyncio.gather(*streams))

    answers = asyncio.run(run())
    assert [[answer.ids] for answer in answers] == offline(cluster, prompts)
    for answer in answers:
        jsonschema.validate(json.loads(answer.text), SCHEMA)


BEGUN: Any = [{"role": "user", "content": "A pet?"}, {"role": "assistant", "content": "<think>Well"}]


@pytest.mark.parametrize("budget", [0, 9])
def test_thoughts_end_with_their_budget_and_the_form_follows(cluster: Cluster, budget: int) -> None:
    fields: dict[str, Any] = {"continue_final_message": True, "add_generation_prompt": False, "return_token_ids": True}
    fields |= {"thinking_token_budget": budget, "structured_outputs": FORM}
    chat = cluster.client("2p2d").chat.completions.create
    answer = chat(model=MODEL, messages=BEGUN, n=3, extra_body=fields, **SEEDED)
    params = SamplingParams(
        structured_outputs=StructuredOutputsParams(**FORM),
        thinking=Thinking(is_open=True, budget=budget),
        n=3,
        **SEEDED,
    )
    ((*expected,),) = cluster.offline([(answer.model_extra or {})["prompt_token_ids"]], params)
    assert [(choice.model_extra or {})["token_ids"] for choice in answer.choices] == [each.ids for each in expected]
    for choice in answer.choices:
        jsonschema.validate(json.loads(choice.message.content or ""), SCHEMA)
        assert ((choice.message.model_extra or {})["reasoning"] is not None) == (budget > 0)
    chunks = chat(model=MODEL, messages=BEGUN, stream=True, extra_body=fields, **SEEDED)
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == answer.choices[0].message.content


class Pet(pydantic.BaseModel):
    """What the SDK makes a schema of."""

    model_config = pydantic.ConfigDict(extra="forbid")
    name: str = pydantic.Field(max_length=8)
    age: int = pydantic.Field(ge=0, le=30)


def test_the_sdk_parses_an_answer_into_its_model(cluster: Cluster) -> None:
    answer = cluster.client("1p1d").chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "A pet?"}],
        response_format=Pet,
        max_tokens=150,
        extra_body={"top_k": 20},
    )
    pet = answer.choices[0].message.parsed
    assert isinstance(pet, Pet)
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": 5}}}}, "5"),
        ({"structured_outputs": {"choice": ["yes"]}}, "yes"),
        ({"guided_choice": ["yes"]}, "yes"),
        ({"guided_regex": "[ab]{3}"}, "[ab]{3}"),
        ({"guided_grammar": 'root ::= "x" "y"?'}, "xy?"),
        (
            {"guided_json": {"type": "integer", "minimum": 3, "maximum": 4}, "guided_decoding_backend": "outlines"},
            "[34]",
        ),
    ],
    ids=str,
)
def test_each_way_of_saying_a_form_is_kept_to(cluster: Cluster, fields: dict[str, Any], fits: str) -> None:
    for path, asked in (
        ("chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("completions", {"prompt": "hi"}),
    ):
        body = {"model": MODEL, "max_tokens": 30, "seed": 1} | asked | fields
        answer = httpx.post(f"{cluster.routers['1p1d'].url}/v1/{path}", json=body, timeout=HANG_S).json()
        choice = answer["choices"][0]
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        assert re.fullmatch(fits, text)
        assert choice["finish_reason"] == "stop"


def test_limits_that_contradict_the_form_end_in_one_error(cluster: Cluster) -> None:
    body = {
        "model": MODEL,
        "prompt": "hi",
        "min_tokens": 20,
        "structured_outputs": {"choice": ["yes"]},
        "max_tokens": 30,
    }
    answer = httpx.post(f"{cluster.routers['1p1d'].url}/v1/completions", json=body, timeout=HANG_S)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "min_tokens"
