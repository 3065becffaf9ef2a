"""Responses and Anthropic's messages over prefill and decode workers: of a given form, and through a replay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import jsonschema
import pydantic
import pytest
from tests.cluster import MODEL, Cluster


@pytest.fixture(autouse=True)
def nothing_is_left(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.assert_quiet()


class Pet(pydantic.BaseModel):
    """What the SDK makes a schema of."""

    model_config = pydantic.ConfigDict(extra="forbid")
    name: str = pydantic.Field(max_length=8)
    age: int = pydantic.Field(ge=0, le=30)


def test_the_sdk_parses_a_response_into_its_model(cluster: Cluster) -> None:
    asked: Any = {"model": MODEL, "input": "A pet?", "text_format": Pet, "max_output_tokens": 150}
    client = cluster.client("1p1d")
    response = client.responses.parse(**asked, extra_body={"top_k": 20})
    assert isinstance(response.output_parsed, Pet)
    assert response.status == "completed"
    with client.responses.stream(**asked, extra_body={"top_k": 20}) as stream:
        final = stream.get_final_response()
    assert isinstance(final.output_parsed, Pet)


def test_a_response_that_is_begun_again_elsewhere_is_the_same(cluster: Cluster) -> None:
    client = cluster.client("2p2d")
    asked: Any = {"model": MODEL, "input": "Where does Tom live?", "max_output_tokens": 24, "temperature": 1.0}
    options: Any = {"extra_body": {"seed": 7, "ignore_eos": True}}
    whole = client.responses.create(**asked, **options)
    pinned = client.responses.create(**asked, **options, stream=True, extra_headers={"x-baton-pin": "replay=5"})
    events = list(pinned)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last: Any = events[-1]
    assert last.response.output_text == whole.output_text
    assert last.response.usage.output_tokens == 24


def test_a_message_of_a_form_goes_on_from_the_turns_before(cluster: Cluster) -> None:
    base = str(cluster.client("1p1d").base_url).removesuffix("/v1/")
    client = anthropic.Anthropic(base_url=base, api_key="unused", max_retries=0, timeout=120)
    schema = Pet.model_json_schema()
    history: Any = [{"role": "user", "content": "A pet?"}]
    for _ in range(2):
        with client.messages.stream(
            model=MODEL,
            max_tokens=150,
            messages=history,
            extra_body={"top_k": 20},
            output_config={"format": {"type": "json_schema", "schema": schema}},
        ) as stream:
            message = stream.get_final_message()
        assert message.stop_reason == "end_turn"
        (block,) = message.content
        assert block.type == "text"
        jsonschema.validate(json.loads(block.text), schema)
        history += [{"role": "assistant", "content": message.content}, {"role": "user", "content": "Another?"}]
