"""/v1/responses over real sockets, with the real SDK, in front of fake workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from .cluster import Cluster, cluster, wait_until
from .tokenizer_folder import make_tokenizer_folder

SAID = 'Well <tool_call>{"name": "sum", "arguments": {"a": 1}}</tool_call>'
TOOLS: Any = [{"type": "function", "name": "sum", "parameters": {"type": "object"}, "strict": False}]
CALLS: Any = {"x-baton-pin": "decode=d1"}
KEYS = ("key-of-alice-0123456", "key-of-bob-012345678")


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    from baton.text import Tokenizer

    tokenizer = Tokenizer(str(make_tokenizer_folder(tmp_path_factory.mktemp("words") / "tiny")))
    script = tokenizer.encode(SAID, add_special_tokens=False)
    workers: list[dict[str, Any]] = [
        {"worker_id": "d0"},
        {"worker_id": "d1", "script_ids": script, "answer_len": len(script) + 1},
    ]
    with cluster(tmp_path_factory.mktemp("responses"), workers, api_key=KEYS) as made:
        yield made


@pytest.fixture(scope="module")
def client(serving: Cluster) -> openai.OpenAI:
    return serving.client(api_key=KEYS[0], default_headers={"x-baton-pin": "decode=d0"})


def ask(serving: Cluster, body: Any, key: str = KEYS[0]) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}", "x-baton-pin": "decode=d0"}
    return httpx.post(f"{serving.url}/v1/responses", json=body, headers=headers)


def test_a_response_is_the_chat_that_it_comes_to(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
        max_completion_tokens=8,
        seed=1,
    )
    response = client.responses.create(
        model="tiny", instructions="Be brief.", input="hello", max_output_tokens=8, extra_body={"seed": 1}
    )
    assert response.output_text == chat.choices[0].message.content
    assert response.usage is not None
    assert chat.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (chat.usage.prompt_tokens, 8)
    assert (response.status, response.instructions) == ("incomplete", "Be brief.")
    items: Any = [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]
    again = client.responses.create(model="tiny", instructions="Be brief.", input=items, max_output_tokens=8)
    assert again.output_text == response.output_text


def test_every_key_of_the_sdks_types_is_there(serving: Cluster) -> None:
    body = ask(serving, {"input": "x", "max_output_tokens": 2, "metadata": {"a": "b"}, "user": "u"}).json()
    known = openai.types.responses.Response.model_fields.keys() - {"output_text"}
    assert known - body.keys() == set()
    assert (body["metadata"], body["user"]) == ({"a": "b"}, "u")


def test_a_streamed_response_equals_the_whole_one(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="tiny", input="hello world", max_output_tokens=12)
    with client.responses.stream(model="tiny", input="hello world", max_output_tokens=12) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    last: Any = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == whole.output_text
    assert client.responses.retrieve(last.response.id).output_text == whole.output_text


def test_a_call_is_an_item_and_its_output_goes_back(client: openai.OpenAI) -> None:
    response = client.responses.create(model="tiny", input="sum", tools=TOOLS, extra_headers=CALLS)
    said, call = response.output
    assert said.type == "message"
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("sum", {"a": 1})
    with client.responses.stream(model="tiny", input="sum", tools=TOOLS, extra_headers=CALLS) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[-1] == "response.completed"
    assert "response.function_call_arguments.done" in kinds
    assert [item.type for item in final.output] == ["message", "function_call"]
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "1"}
    by_id = client.responses.create(
        model="tiny", input=[output], previous_response_id=response.id, tools=TOOLS, max_output_tokens=6
    )
    in_full: Any = [{"role": "user", "content": "sum"}, *(item.to_dict() for item in response.output), output]
    whole = client.responses.create(model="tiny", input=in_full, tools=TOOLS, max_output_tokens=6)
    chat: Any = [
        {"role": "user", "content": "sum"},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "Well "}],
            "tool_calls": [
                {"id": call.call_id, "type": "function", "function": {"name": "sum", "arguments": '{"a": 1}'}}
            ],
        },
        {"role": "tool", "tool_call_id": call.call_id, "content": "1"},
    ]
    functions: Any = [
        {"type": "function", "function": {"name": "sum", "parameters": {"type": "object"}, "strict": False}}
    ]
    plain = client.chat.completions.create(model="tiny", messages=chat, tools=functions, max_completion_tokens=6)
    assert by_id.output_text == whole.output_text == plain.choices[0].message.content


def test_a_conversation_goes_on_from_an_answer_that_is_kept(client: openai.OpenAI) -> None:
    first = client.responses.create(model="tiny", input="one", max_output_tokens=4)
    second = client.responses.create(
        model="tiny", input="two", max_output_tokens=4, previous_response_id=first.id, instructions="Be brief."
    )
    third = client.responses.create(model="tiny", input="three", max_output_tokens=4, previous_response_id=second.id)
    in_full: Any = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first.output_text},
        {"type": "message", "role": "user", "content": "two"},
        {"type": "item_reference", "id": second.output[0].id},
        {"role": "user", "content": [{"type": "input_text", "text": "three"}]},
    ]
    whole = client.responses.create(model="tiny", input=in_full, max_output_tokens=4)
    assert third.output_text == whole.output_text
    assert third.previous_response_id == second.id
    items = client.responses.input_items.list(third.id, order="asc").data
    assert [item.to_dict()["content"][0]["text"] for item in items] == [  # type: ignore[index]
        *("one", first.output_text, "two", second.output_text, "three")
    ]
    page = client.responses.input_items.list(third.id, limit=2)
    assert page.has_next_page()
    assert len(list(client.responses.input_items.list(third.id, limit=2))) == 5


def test_a_long_conversation_is_read_aside_and_answered_alike(client: openai.OpenAI) -> None:
    filler = " " * 40_000
    tools: Any = [{**TOOLS[0], "description": filler}, {**TOOLS[0], "name": "other", "description": filler}]
    long = client.responses.create(model="tiny", input="hello", tools=tools, tool_choice="none", max_output_tokens=4)
    short = client.responses.create(model="tiny", input="hello", tools=TOOLS, tool_choice="none", max_output_tokens=4)
    assert long.output_text == short.output_text
    assert long.tools[0].to_dict()["description"] == filler
    again = client.responses.create(model="tiny", input="x", previous_response_id=long.id, max_output_tokens=4)
    other = client.responses.create(model="tiny", input="x", previous_response_id=short.id, max_output_tokens=4)
    assert again.output_text == other.output_text


def test_what_is_deleted_not_stored_or_another_keys_is_not_there(serving: Cluster, client: openai.OpenAI) -> None:
    kept = client.responses.create(model="tiny", input="x", max_output_tokens=2)
    unkept = client.responses.create(model="tiny", input="x", max_output_tokens=2, store=False)
    deleted = client.responses.create(model="tiny", input="x", max_output_tokens=2)
    client.responses.delete(deleted.id)
    stranger = serving.client(api_key=KEYS[1])
    assert client.responses.retrieve(kept.id).to_dict() == kept.to_dict()
    for asker, name in ((stranger, kept.id), (client, unkept.id), (client, deleted.id), (client, "resp_none")):
        for question in (asker.responses.retrieve, asker.responses.delete, asker.responses.cancel):
            with pytest.raises(openai.NotFoundError):
                question(name)
        with pytest.raises(openai.NotFoundError) as refused:
            asker.responses.create(model="tiny", input="x", previous_response_id=name)
        assert refused.value.param == "previous_response_id"
        assert refused.value.code == "previous_response_not_found"
        assert name in refused.value.message


def test_what_is_made_in_the_background_is_fetched_when_it_is_done(serving: Cluster, client: openai.OpenAI) -> None:
    whole = client.responses.create(model="tiny", input="hello", max_output_tokens=40)
    made = client.responses.create(model="tiny", input="hello", max_output_tokens=40, background=True)
    assert made.status in ("queued", "in_progress")
    wait_until(lambda: client.responses.retrieve(made.id).status == "incomplete")
    assert client.responses.retrieve(made.id).output_text == whole.output_text
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(whole.id)
    assert client.responses.cancel(made.id).status == "incomplete"
    endless = client.responses.create(model="tiny", input="hello", background=True)
    wait_until(lambda: client.responses.retrieve(endless.id).status == "in_progress")
    with pytest.raises(openai.BadRequestError, match="still being made"):
        client.responses.create(model="tiny", input="x", previous_response_id=endless.id)
    assert client.responses.cancel(endless.id).status == "cancelled"
    wait_until(lambda: not serving.state.dispatcher.flows)
    assert client.responses.retrieve(endless.id).status == "cancelled"
    assert not serving.state.responses.making


def test_a_stream_of_what_is_made_in_the_background_is_taken_up_again(client: openai.OpenAI) -> None:
    stream = client.responses.create(model="tiny", input="hello", max_output_tokens=30, background=True, stream=True)
    seen: list[Any] = []
    for event in stream:
        seen.append(event)
        if event.type == "response.output_text.delta":
            break
    stream.close()
    name = seen[0].response.id
    assert [event.type for event in seen[:3]] == ["response.created", "response.queued", "response.in_progress"]
    rest = list(client.responses.retrieve(name, stream=True, starting_after=seen[-1].sequence_number))
    numbers = [event.sequence_number for event in (*seen, *rest)]
    assert numbers == list(range(len(numbers)))
    assert rest[-1].type == "response.incomplete"
    whole = client.responses.retrieve(name)
    deltas = [event.delta for event in (*seen, *rest) if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text


def test_scores_come_with_the_text_if_they_are_asked_for(client: openai.OpenAI) -> None:
    include: Any = ["message.output_text.logprobs"]
    options: Any = {"model": "tiny", "input": "hello", "max_output_tokens": 3, "include": include, "top_logprobs": 2}
    part: Any = client.responses.create(**options).output[0].content[0]  # type: ignore[union-attr]
    assert "".join(score.token for score in part.logprobs) == part.text
    assert len(part.logprobs[0].top_logprobs) == 2
    with client.responses.stream(**options) as stream:
        deltas = [event for event in stream if event.type == "response.output_text.delta"]
    assert [score.token for event in deltas for score in event.logprobs] == [score.token for score in part.logprobs]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "x", "tools": [{"type": "mcp", "server_label": "s", "server_url": "u"}]}, "tools[0].type"),
        ({"input": "x", "tools": [{"type": "function", "parameters": {}}]}, "tools[0].name"),
        ({"input": [{"type": "computer_call", "id": "c"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "msg_0"}]}, "input[0].id"),
        ({"input": [{"type": "reasoning", "encrypted_content": "gAAA"}]}, "input[0].encrypted_content"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({}, "input"),
        ({"input": "x", "max_output_tokens": 10**6}, "max_output_tokens"),
        ({"input": "x", "max_tokens": 5}, "max_tokens"),
        ({"input": "x", "truncation": "auto"}, "truncation"),
        ({"input": "x", "include": ["web_search_call.results"]}, "include"),
        ({"input": "x", "conversation": "conv_1"}, "conversation"),
        ({"input": "x", "reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"input": "x", "text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        (
            {"input": "x", "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "nothing"}}}},
            "text.format.schema",
        ),
        ({"input": "x", "background": True, "store": False}, "background"),
        ({"input": "x", "metadata": {"a": 1}}, "metadata.a"),
        ({"input": "x", "nonsense": 1}, "nonsense"),
        ({"input": "x", "tool_choice": {"type": "mcp", "server_label": "s"}}, "tool_choice.type"),
    ],
)
def test_what_is_not_served_is_refused_by_name(serving: Cluster, body: Any, field: str) -> None:
    answer = ask(serving, body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, field)
    assert field in error["message"]
    assert answer.headers["x-request-id"]
