"""instructor: structured output by tools, JSON and schemas, whole and partial."""

from __future__ import annotations

import instructor
import openai
import pydantic
import pytest
from conftest import KEY


class Pair(pydantic.BaseModel):
    """A thing and a title."""

    thing: str
    title: str


ASK = {"temperature": 0, "messages": [{"role": "user", "content": "Return JSON with thing door and title rain."}]}
MODES = ["TOOLS", "TOOLS_STRICT", "JSON", "JSON_SCHEMA", "MD_JSON"]


@pytest.mark.parametrize("mode", MODES)
def test_create(demo, mode):
    raw = openai.OpenAI(base_url=demo.v1, api_key=KEY)
    client = instructor.from_openai(raw, mode=instructor.Mode[mode])
    if mode == "MD_JSON":  # the model is to write a code block, which this one never learned
        pytest.skip("the demo model writes no code blocks")
    assert isinstance(client.chat.completions.create(model=demo.model, response_model=Pair, **ASK), Pair)


def test_partial(demo):
    raw = openai.OpenAI(base_url=demo.v1, api_key=KEY)
    client = instructor.from_openai(raw, mode=instructor.Mode.JSON_SCHEMA)
    parts = list(client.chat.completions.create_partial(model=demo.model, response_model=Pair, **ASK))
    assert parts[-1].thing
    assert len(parts) > 2
