"""/v1/messages over real sockets, with Anthropic's SDK, in front of fake workers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types import RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from baton.errors import Unavailable
from baton.messages import Token
from baton.router.anthropic.writer import MessageWriter
from baton.router.openai.blocks import BlockSink
from baton.router.openai.open_request import Tally
from baton.router.openai.parsers.call_parts import Offered
from baton.router.openai.parsers.tool_forms import TOOL_PARSERS
from baton.router.openai.parts import CallArguments, CallBegins, Reasoning, Refusal
from baton.router.sink import Usage
from baton.text import Tokenizer

from .cluster import Cluster, cluster
from .tokenizer_folder import make_tokenizer_folder

SAID = 'Well <tool_call>{"name": "sum", "arguments": {"a": 1}}</tool_call>'
TOOLS: Any = [{"name": "sum", "description": "Add.", "input_schema": {"type": "object"}}]
CALLS: Any = {"x-baton-pin": "decode=d1"}
KEY = "key-of-alice-0123456"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    tokenizer = Tokenizer(str(make_tokenizer_folder(tmp_path_factory.mktemp("words") / "tiny")))
    script = tokenizer.encode(SAID, add_special_tokens=False)
    workers: list[dict[str, Any]] = [
        {"worker_id": "d0"},
        {"worker_id": "d1", "script_ids": script, "answer_len": len(script) + 1},
    ]
    with cluster(tmp_path_factory.mktemp("messages"), workers, api_key=(KEY,)) as made:
        yield made


@pytest.fixture(scope="module")
def client(serving: Cluster) -> anthropic.Anthropic:
    headers = {"x-baton-pin": "decode=d0"}
    return anthropic.Anthropic(base_url=serving.url, api_key=KEY, max_retries=0, timeout=30, default_headers=headers)


def ask(serving: Cluster, body: Any, path: str = "", **headers: str) -> httpx.Response:
    headers = {"x-api-key": KEY, "x-baton-pin": "decode=d0"} | headers
    return httpx.post(f"{serving.url}/v1/messages{path}", json=body, headers=headers, timeout=30)


def test_a_message_is_the_chat_that_it_comes_to(serving: Cluster, client: anthropic.Anthropic) -> None:
    openai = serving.client(api_key=KEY, default_headers={"x-baton-pin": "decode=d0"})
    chat = openai.chat.completions.create(
        model="tiny",
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
        max_completion_tokens=8,
    )
    message = client.messages.create(
        model="tiny", system="Be brief.", messages=[{"role": "user", "content": "hello"}], max_tokens=8
    )
    (block,) = message.content
    assert block.type == "text"
    assert block.text == chat.choices[0].message.content
    assert (message.stop_reason, message.role, message.type) == ("max_tokens", "assistant", "message")
    assert chat.usage is not None
    cached = message.usage.cache_read_input_tokens or 0
    assert (message.usage.input_tokens + cached, message.usage.output_tokens) == (chat.usage.prompt_tokens, 8)
    counted = client.messages.count_tokens(
        model="tiny",
        system=[{"type": "text", "text": "Be brief."}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}]}
        ],
    )
    assert counted.input_tokens == chat.usage.prompt_tokens


def test_no_blocks_are_an_empty_text(client: anthropic.Anthropic) -> None:
    counted = [
        client.messages.count_tokens(model="tiny", messages=[{"role": "user", "content": content}]).input_tokens
        for content in ("", [])
    ]
    assert counted[0] == counted[1]


def test_a_streamed_message_equals_the_whole_one(client: anthropic.Anthropic) -> None:
    asked: Any = {"model": "tiny", "messages": [{"role": "user", "content": "hello world"}], "max_tokens": 12}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert [block.to_dict() for block in final.content] == [block.to_dict() for block in whole.content]
    assert text == whole.content[0].text  # type: ignore[union-attr]
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_a_stop_sequence_is_named(client: anthropic.Anthropic) -> None:
    asked: Any = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 40}
    text = client.messages.create(**asked).content[0].text  # type: ignore[union-attr]
    message = client.messages.create(**asked, stop_sequences=["nowhere", text[5:7]])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", text[5:7])
    assert message.content[0].text == text[: text.index(text[5:7])]  # type: ignore[union-attr]


def test_a_call_is_a_block_and_its_result_goes_back(serving: Cluster, client: anthropic.Anthropic) -> None:
    asked: Any = {"model": "tiny", "max_tokens": 100, "tools": TOOLS, "extra_headers": CALLS}
    question: Any = {"role": "user", "content": "sum"}
    message = client.messages.create(messages=[question], **asked)
    said, call = message.content
    assert (said.type, call.type, message.stop_reason) == ("text", "tool_use", "tool_use")
    assert call.type == "tool_use"
    assert (call.name, call.input) == ("sum", {"a": 1})
    with client.messages.stream(messages=[question], **asked) as stream:
        streamed = stream.get_final_message()
    assert [block.to_dict() | {"id": ""} for block in streamed.content] == [
        block.to_dict() | {"id": ""} for block in message.content
    ]
    result: Any = [
        {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "1"}]},
        {"type": "text", "text": "So?"},
    ]
    history: Any = [question, {"role": "assistant", "content": message.content}, {"role": "user", "content": result}]
    answer = client.messages.create(model="tiny", max_tokens=6, tools=TOOLS, messages=history)
    chat: Any = [
        question,
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "Well "}],
            "tool_calls": [{"id": call.id, "type": "function", "function": {"name": "sum", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": "1"}]},
        {"role": "user", "content": [{"type": "text", "text": "So?"}]},
    ]
    function: Any = {"name": "sum", "description": "Add.", "parameters": {"type": "object"}}
    openai = serving.client(api_key=KEY, default_headers={"x-baton-pin": "decode=d0"})
    plain = openai.chat.completions.create(
        model="tiny", messages=chat, tools=[{"type": "function", "function": function}], max_completion_tokens=6
    )
    assert answer.content[0].text == plain.choices[0].message.content  # type: ignore[union-attr]


def test_an_answer_that_has_begun_is_gone_on_with(client: anthropic.Anthropic) -> None:
    begun: Any = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Well"}]
    ended: Any = [*begun, {"role": "user", "content": "x"}]
    count = client.messages.count_tokens
    # neither the mark that ends the answer nor one that begins another is in the prompt
    assert count(model="tiny", messages=ended).input_tokens == count(model="tiny", messages=begun).input_tokens + 5


def test_a_long_conversation_is_read_aside_and_answered_alike(client: anthropic.Anthropic) -> None:
    asked: Any = {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}
    tools: Any = [{**TOOLS[0], "name": f"sum{i}", "description": " " * 40_000} for i in range(2)]
    none: Any = {"type": "none"}
    long = client.messages.create(**asked, tools=tools, tool_choice=none)
    assert long.content == client.messages.create(**asked).content


def test_errors_are_in_anthropics_form(serving: Cluster, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="served here: tiny"):
        client.messages.create(model="other", messages=[{"role": "user", "content": "x"}], max_tokens=2)
    stranger = client.with_options(api_key="none")
    with pytest.raises(anthropic.AuthenticationError):
        stranger.messages.create(model="tiny", messages=[{"role": "user", "content": "x"}], max_tokens=2)
    for answer, status, kind in (
        (ask(serving, {"messages": [{"role": "user", "content": "x"}]}), 400, "invalid_request_error"),
        (ask(serving, {"model": "tiny", "messages": [], "max_tokens": 1}), 400, "invalid_request_error"),
        (ask(serving, {}, "/nowhere"), 404, "not_found_error"),
        (ask(serving, {}, **{"x-api-key": "none"}), 401, "authentication_error"),
        (ask(serving, {}, **{"x-long": "x" * 70_000}), 431, "invalid_request_error"),
    ):
        assert answer.status_code == status
        assert answer.json()["type"] == "error"
        assert answer.json()["error"]["type"] == kind
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "nonsense"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "i", "name": "n", "input": {}}]}]},
            "messages[0].content[0].type",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}]}, "tools[0].type"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"container": "c"}, "container"),
        ({"thread": {"type": "create"}}, "thread"),
        ({"temperature": -1}, "temperature"),
        ({"nonsense": 1}, "nonsense"),
        ({"system": 5}, "system"),
    ],
)
def test_what_is_not_served_is_refused_by_name(serving: Cluster, body: Any, field: str) -> None:
    answer = ask(serving, {"max_tokens": 5, "messages": [{"role": "user", "content": "x"}]} | body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(field)


def test_a_thread_is_refused_so_that_the_sdk_goes_on_with_whole_conversations(serving: Cluster) -> None:
    messages = [{"role": "user", "content": "x"}]
    refused = ask(serving, {"max_tokens": 5, "messages": messages, "thread": {"type": "create"}}).json()["error"]
    assert refused["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    assert "details" not in ask(serving, {"max_tokens": 0, "messages": messages}).json()["error"]


# -- parts to blocks ------------------------------------------------------------------------------------------

EVENTS: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


class Outlet:
    """Takes what a writer gives."""

    has_reader = True

    def __init__(self) -> None:
        self.data = b""
        self.message: Any = None

    def emit(self, data: bytes) -> None:
        self.data += data

    emit_all = emit

    def refuse(self, error: Exception, *, has_begun: bool) -> bool:
        return not has_begun

    def over(self, status: str, answer: bytes, last: bytes) -> None:
        self.data += last
        self.message = json.loads(answer) if answer else None


def write(tokens: list[Any], error: Any = None) -> Outlet:
    """Give a message these tokens, each a text or parts."""
    outlet = Outlet()
    sink = BlockSink(MessageWriter("m", outlet), Tally(20, 1, hides_completion=False), 20, None, lambda: None)
    for i, shown in enumerate(tokens):
        is_last = i == len(tokens) - 1 and error is None
        sink.push(0, shown, Token("r", 0, 0, 20 + i, 5, num_cached=16), "stop" if is_last else None, None)
    if error is not None:
        sink.fail(error)
    else:
        sink.end(Usage(20, 16, len(tokens)))
    return outlet


def blocks_of(outlet: Outlet) -> list[Any]:
    """Check that events pair up and add up to the message; return its blocks."""
    events = [json.loads(event.partition("\ndata: ")[2]) for event in outlet.data.decode().split("\n\n")[:-1]]
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["message_start", "ping"]
    assert kinds[-2:] == ["message_delta", "message_stop"]
    blocks: list[Any] = []
    is_open = False
    for event in events[2:-2]:
        assert event["index"] == len(blocks) - (event["type"] != "content_block_start")
        if event["type"] == "content_block_start":
            assert not is_open
            is_open = True
            blocks.append(event["content_block"])
            calls = ""
        elif event["type"] == "content_block_stop":
            assert is_open
            is_open = False
            if calls:
                blocks[-1]["input"] = json.loads(calls)
        else:
            delta = event["delta"]
            calls += delta.get("partial_json", "")
            for name in ("text", "thinking", "signature"):
                if name in delta:
                    blocks[-1][name] += delta[name]
    assert not is_open
    assert blocks == outlet.message["content"]
    return blocks


def test_every_kind_of_part_is_a_block_of_its_own() -> None:
    call = [CallBegins(0, "call_1", "sum", '{"a":'), CallArguments(0, " 1}")]
    outlet = write([[Reasoning("Let me ")], [Reasoning("think.")], ["\n"], call, ["Well"], [Refusal("No.")]])
    blocks = blocks_of(outlet)
    assert [block["type"] for block in blocks] == ["thinking", "tool_use", "text", "text"]
    assert (blocks[0]["thinking"], blocks[1]["input"]) == ("Let me think.", {"a": 1})
    assert outlet.message["usage"]["output_tokens_details"] == {"thinking_tokens": 2}
    assert (outlet.message["usage"]["input_tokens"], outlet.message["usage"]["cache_read_input_tokens"]) == (4, 16)
    for event in outlet.data.decode().split("\n\n")[:-1]:
        if "ping" not in event:
            EVENTS.validate_json(event.partition("\ndata: ")[2])


def test_what_fails_midway_says_why() -> None:
    last = write(["Well"], error=Unavailable("All workers are away.")).data.split(b"\n\n")[-2]
    name, data = last.split(b"\n")
    error = {"type": "overloaded_error", "message": "All workers are away."}
    assert (name, json.loads(data.removeprefix(b"data: "))) == (b"event: error", {"type": "error", "error": error})


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([SAID, "<tool_call>", "</tool_call>", "<", " ", "ä", "{}"]), max_size=12), st.data())
def test_an_answer_has_the_same_blocks_however_its_text_is_cut(words: list[str], data: st.DataObject) -> None:
    text = "".join(words)

    def blocks(edges: list[int]) -> Any:
        parser = TOOL_PARSERS["hermes"](Offered())
        tokens = [parser.push(text[a:b], 0) for a, b in itertools.pairwise(edges)]
        return [block | {"id": ""} for block in blocks_of(write([*tokens, parser.finish()]))]

    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    assert blocks([0, *cuts, len(text)]) == blocks([0, len(text)])
