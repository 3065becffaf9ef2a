"""Parts to a response's items and events: the same answer however its text is cut, and events that pair up."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from baton.errors import Unavailable
from baton.messages import Token
from baton.requests.responses import Kept, ResponsesRequest
from baton.requests.translated import Context
from baton.router.openai.blocks import BlockSink
from baton.router.openai.open_request import Tally
from baton.router.openai.parsers.call_parts import Offered
from baton.router.openai.parsers.tool_forms import TOOL_PARSERS
from baton.router.openai.parts import CallArguments, CallBegins, Part, Reasoning, Refusal
from baton.router.responses.frame import ResponseFrame, new_response_id
from baton.router.responses.writer import ResponseWriter
from baton.router.sink import Usage

CALL = '<tool_call>{"name": "sum", "arguments": {"a": 1}}</tool_call>'
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WHOLE = {"output_text": "text", "refusal": "refusal", "reasoning_text": "text", "function_call_arguments": "arguments"}


class Outlet:
    """Takes what a writer gives."""

    has_reader = True

    def __init__(self) -> None:
        self.data = b""
        self.response: Any = None

    def emit(self, data: bytes) -> None:
        self.data += data

    emit_all = emit

    def refuse(self, error: Exception, *, has_begun: bool) -> bool:
        return not has_begun

    def over(self, status: str, response: bytes, last: bytes) -> None:
        self.data += last
        self.response = json.loads(response)

    @property
    def events(self) -> list[Any]:
        lines = self.data.decode().split("\n\n")[:-1]
        return [json.loads(line.partition("\ndata: ")[2]) for line in lines]


def write(tokens: list[Any], finish_reason: str | None = "stop", error: Any = None, *, sealed: bool = False) -> Outlet:
    """Give a response these tokens, each a text or parts."""
    outlet = Outlet()
    body = ResponsesRequest.model_validate({"input": "x"})
    kept = Kept(b'"tools":[],"tool_choice":"auto","parallel_tool_calls":true', b"[]")
    assert body.translate(Context())
    frame = ResponseFrame(new_response_id(), "m", kept, store=True, temperature=1.0, top_p=1.0)
    writer = ResponseWriter(frame, outlet, seals_reasoning=sealed)
    sink = BlockSink(writer, Tally(20, 1, hides_completion=False), 20, None, lambda: None)
    for i, shown in enumerate(tokens):
        is_last = i == len(tokens) - 1 and error is None
        sink.push(0, shown, Token("r", 0, 0, 20 + i, 5, num_cached=16), finish_reason if is_last else None, None)
    if error is not None:
        sink.fail(error)
    else:
        sink.end(Usage(20, 16, len(tokens)))
    return outlet


def check_grammar(outlet: Outlet) -> dict[str, Any]:
    """Check that events pair up, and add up to the response; return it."""
    events = outlet.events
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    items: list[Any] = []
    for event in events[2:-1]:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert not items or items[-1]["done"]
            assert event["output_index"] == len(items)
            items.append({"id": event["item"]["id"], "parts": 0, "text": "", "done": None, "whole": None})
        elif kind == "output_item.done":
            assert not items[-1]["parts"]
            items[-1]["done"] = event["item"]
        elif kind == "content_part.added":
            items[-1]["parts"] += 1
        elif kind == "content_part.done":
            items[-1]["parts"] -= 1
        else:
            name, _, end = kind.rpartition(".")
            assert event["item_id"] == items[-1]["id"]
            assert event["output_index"] == len(items) - 1
            if end == "delta":
                assert items[-1]["whole"] is None
                items[-1]["text"] += event["delta"]
            else:
                assert event[WHOLE[name]] == items[-1]["text"]
                items[-1]["whole"] = name
    response: dict[str, Any] = events[-1]["response"]
    assert response == outlet.response
    assert [item["done"] for item in items] == response["output"]
    assert all(item["whole"] for item in items)
    return response


def sdk(outlet: Outlet) -> Response:
    """Return the response as the SDK reads it, with all of its events."""
    check_grammar(outlet)
    events = [EVENTS.validate_python(event) for event in outlet.events]
    response: Response = events[-1].response
    return response


PARTS: list[list[Part]] = [
    [],
    [Reasoning("Let me ")],
    [Reasoning("think.")],
    [],
    ["\n"],
    [CallBegins(0, "call_1", "sum", '{"a":'), CallArguments(0, " 1")],
    [CallArguments(0, "}"), "Well, ", Refusal("No.")],
]


def test_every_kind_of_part_is_an_item_of_its_own() -> None:
    response = sdk(write(PARTS))
    kinds = [item.type for item in response.output]
    assert kinds == ["reasoning", "function_call", "message", "message"]
    reasoning, call, said, refused = (item.to_dict() for item in response.output)
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Let me think."}]
    assert reasoning["encrypted_content"] is None
    assert (call["call_id"], call["name"], call["arguments"]) == ("call_1", "sum", '{"a": 1}')
    assert (said["content"][0]["text"], refused["content"][0]["refusal"]) == ("Well, ", "No.")  # type: ignore[index]
    assert {item.status for item in response.output} == {"completed"}  # type: ignore[union-attr]
    assert response.status == "completed"
    assert response.usage is not None
    assert response.usage.output_tokens == len(PARTS)
    assert response.usage.output_tokens_details.reasoning_tokens == 4
    assert response.usage.input_tokens_details.cached_tokens == 16


def test_reasoning_that_is_asked_for_sealed_is_read_again() -> None:
    item = write(PARTS, sealed=True).response["output"][0]
    body = {"input": [{key: item[key] for key in ("type", "id", "encrypted_content")} | {"summary": []}]}
    chat, _ = ResponsesRequest.model_validate(body).translate(Context())
    assert chat.messages[0].reasoning_content == "Let me think."


def test_an_answer_that_is_cut_short_says_so() -> None:
    response = sdk(write(["Well, ", ""], "length"))
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert [item.status for item in response.output] == ["incomplete"]  # type: ignore[union-attr]
    assert sdk(write([[Reasoning("Hm")]], "length")).output[0].type == "reasoning"


def test_an_answer_of_nothing_is_an_empty_message() -> None:
    for tokens in ([""], [[]], [[Reasoning("Hm")], []]):
        response = sdk(write(tokens))
        assert response.output[-1].type == "message"
        assert response.output_text == ""


def test_what_fails_midway_ends_each_item_and_says_why() -> None:
    response = sdk(write(["Well, "], error=Unavailable("All workers are away.")))
    assert response.status == "failed"
    assert response.error is not None
    assert (response.error.code, response.error.message) == ("server_error", "All workers are away.")
    assert [item.status for item in response.output] == ["incomplete"]  # type: ignore[union-attr]
    assert write([], error=Unavailable("All workers are away.")).data == b""


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([CALL, "<tool_call>", "</tool_call>", "<", "tool", " ", "\n", "ä", "{}"]), max_size=12),
    st.data(),
    st.sampled_from(["stop", "length"]),
)
def test_an_answer_has_the_same_items_however_its_text_is_cut(
    words: list[str], data: st.DataObject, finish: str
) -> None:
    text = "".join(words)

    def response_of(edges: list[int]) -> Any:
        parser = TOOL_PARSERS["hermes"](Offered())
        tokens = [parser.push(text[a:b], 0) for a, b in itertools.pairwise(edges)]
        tokens.append(parser.finish())
        return [
            (item["type"], item.get("arguments"), item.get("content"))
            for item in check_grammar(write(tokens, finish))["output"]
        ]

    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    assert response_of([0, *cuts, len(text)]) == response_of([0, len(text)])
