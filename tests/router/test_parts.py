"""From tokens to parts, and from parts to events and bodies: the same answer, however its text is cut."""

import asyncio
import itertools
import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from baton.messages import Token
from baton.requests.chat import ChatRequest
from baton.router.openai.bodies import CollectSink, chat_choice
from baton.router.openai.events import AnswerEvents, ChatEvents
from baton.router.openai.open_request import Tally
from baton.router.openai.parsers import PARSERS, new_parser_of
from baton.router.openai.parts import CallArguments, CallBegins, Part, Reasoning, Refusal
from baton.router.sink import Usage

CALL = '<tool_call>{"name": "sum", "arguments": {"a": 1}}</tool_call>'


def parse(pieces: list[str], *, one_call: bool = False) -> list[Any]:
    """Return the parts of a text that comes in pieces, with texts joined and calls without their ids."""
    parser = new_parser_of("hermes", one_call=one_call)()
    parts = [part for piece in pieces for part in parser.push(piece, 0)] + parser.finish()
    joined: list[Any] = []
    for part in parts:
        if isinstance(part, CallBegins):
            joined.append((part.index, part.name, part.arguments))
        elif isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def test_calls_and_text_come_in_order() -> None:
    assert parse([f"Well {CALL}"]) == ["Well ", (0, "sum", '{"a": 1}')]
    assert parse([CALL + CALL]) == [(0, "sum", '{"a": 1}'), (1, "sum", '{"a": 1}')]
    assert parse(['<tool_call>{"name": "f", "arguments": "x"}</tool_call>']) == [(0, "f", "x")]


def test_arguments_are_passed_on_as_the_model_wrote_them() -> None:
    for arguments in (
        '{"id":123456789012345678901234,"x":1.10}',
        '{ "a" : [1e5,\n -0.0] }',
        '{"s": "\\u00e9\\/"}',
        "[1, 2]",
    ):
        assert parse([f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>']) == [(0, "f", arguments)]


def test_parameters_are_taken_for_arguments_and_nothing_for_no_arguments() -> None:
    assert parse(['<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>']) == [(0, "f", '{"a": 1}')]
    for nothing in ("", ', "arguments": null', ', "arguments": {}'):
        assert parse([f'<tool_call>{{"name": "f"{nothing}}}</tool_call>']) == [(0, "f", "{}")]


def test_who_wants_one_call_gets_the_first() -> None:
    assert parse([f"Well {CALL}\n{CALL}\n{CALL} ok"], one_call=True) == ["Well ", (0, "sum", '{"a": 1}'), " ok"]
    assert parse([f'{CALL}<tool_call>{{"name": "f"}}'], one_call=True) == [(0, "sum", '{"a": 1}')]


def test_white_space_after_a_call_is_shown_only_before_text() -> None:
    assert parse([f"{CALL}\n{CALL}\n"]) == [(0, "sum", '{"a": 1}'), (1, "sum", '{"a": 1}')]
    assert parse([f"{CALL}\nSo be it"]) == [(0, "sum", '{"a": 1}'), "\nSo be it"]


def test_what_is_no_call_stays_text() -> None:
    for text in (
        "<tool_call>{nonsense}</tool_call>",
        "<tool_call>[1]</tool_call>",
        "<tool_call>" + "[" * 9999,
        "<tool_call>{",
        "a <tool",
        "",
    ):
        assert "".join(parse([text])) == text


def test_an_answer_that_ends_in_place_of_the_closing_tag_is_a_call() -> None:
    assert parse(['<tool_call>{"name": "f"}']) == [(0, "f", "{}")]


def test_a_call_that_never_ends_is_given_up_as_text() -> None:
    parser = PARSERS["hermes"]()
    text = "<tool_call>" + "x" * (1 << 20)
    for piece in ("<tool_call>", *["x" * 16] * (1 << 16)):  # each looked at once: the square of this would take minutes
        assert parser.push(piece, 0) == []
    assert parser.push("yy", 0) == [text + "yy"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([CALL, "<tool_call>", "</tool_call>", "<", "tool", " ", "\n", "a", "{}"])), st.data())
@example([CALL, " ", "a"], None)
def test_a_text_has_the_same_parts_however_it_is_cut(words: list[str], data: st.DataObject | None) -> None:
    text = "".join(words)
    cuts = range(len(text)) if data is None else sorted(data.draw(st.sets(st.integers(0, len(text)))))
    edges = [0, *cuts, len(text)]
    assert parse([text[a:b] for a, b in itertools.pairwise(edges)]) == parse([text])


# -- parts to clients -----------------------------------------------------------------------------------------


class FakeStream:
    """Takes events in place of a connection."""

    def __init__(self) -> None:
        self.data = b""
        self.is_closed = False

    def push(self, data: bytes) -> None:
        self.data += data

    def close(self, last: bytes) -> None:
        self.push(last)
        self.is_closed = True

    @property
    def events(self) -> list[Any]:
        """The events, without the last."""
        *events, last = self.data.decode().split("\n\n")[:-1]
        assert last == "data: [DONE]"
        return [json.loads(event.removeprefix("data: ")) for event in events]


SHOWN: list[list[Part]] = [
    [Reasoning("Let me ")],
    [Reasoning("think."), "Well, "],
    [CallBegins(0, "call_1", "sum", '{"a":'), CallArguments(0, " 1")],
    [CallArguments(0, "}"), Refusal("No.")],
    [],
]


def say(sink: Any, shown: list[Any]) -> None:
    """Give a sink an answer, a token for each entry."""
    for i, parts in enumerate(shown):
        is_last = i == len(shown) - 1
        token = Token("r", 0, 0, 20 + i, 5, num_cached=16 if i == 0 else 0)
        sink.push(0, parts, token, "stop" if is_last else None, None)
    sink.end(Usage(20, 16, len(shown)))


def stream_of(shown: list[Any], **options: Any) -> list[Any]:
    """Return the events of an answer."""
    request = ChatRequest.model_validate({"messages": [{"role": "user", "content": "x"}], "stream": True} | options)
    stream: Any = FakeStream()
    tally = Tally(20, 1, hides_completion=False)
    answer = AnswerEvents(request, {"id": "i"}, stream, tally, str, lambda: None)
    say(ChatEvents(answer, list(range(20))), shown)
    assert stream.is_closed
    return list(stream.events)


def body_of(shown: list[Any]) -> dict[str, Any]:
    """Return the only choice of an answer."""

    async def collect() -> dict[str, Any]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sink = CollectSink(1, Tally(20, 1, hides_completion=False), done, lambda: None)
        say(sink, shown)
        assert done.done()
        request = ChatRequest.model_validate({"messages": [{"role": "user", "content": "x"}]})
        return json.loads(b"".join(chat_choice(request, 0, sink.choices[0], str)))

    return asyncio.run(collect())


def test_every_kind_of_part_reaches_a_body() -> None:
    choice = body_of(SHOWN)
    call = {"id": "call_1", "type": "function", "function": {"name": "sum", "arguments": '{"a": 1}'}}
    assert choice["message"] == {
        "role": "assistant",
        "content": "Well, ",
        "reasoning": "Let me think.",
        "reasoning_content": "Let me think.",
        "refusal": "No.",
        "tool_calls": [call],
        **dict.fromkeys(("annotations", "audio", "function_call")),
    }
    assert choice["finish_reason"] == "tool_calls"


def test_the_deltas_of_a_stream_add_up_to_the_body() -> None:
    sums: dict[str, Any] = {}
    events = stream_of(SHOWN)
    for event in events:
        delta = event["choices"][0]["delta"]
        for call in delta.pop("tool_calls", []):
            known = sums.setdefault("tool_calls", [])
            if call["index"] == len(known):
                known.append({key: value for key, value in call.items() if key != "index"})
            else:
                known[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        for key, value in delta.items():
            sums[key] = sums.get(key, "") + value
    assert sums == {key: value for key, value in body_of(SHOWN)["message"].items() if value is not None}
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_text_alone_and_text_among_parts_are_the_same_events() -> None:
    assert stream_of(["a", "c", "b"]) == stream_of([["a"], ["c"], ["b"]])


def test_each_token_of_text_has_one_event_and_the_last_says_how_the_choice_ended() -> None:
    role, *choices = [event["choices"][0] for event in stream_of(["a", "", "b"])]
    assert role["delta"] == {"role": "assistant", "content": ""}
    assert [choice["delta"] for choice in choices] == [{"content": "a"}, {"content": ""}, {"content": "b"}]
    assert [choice["finish_reason"] for choice in choices] == [None, None, "stop"]


def test_an_end_that_shows_nothing_is_an_event_of_its_own() -> None:
    choices = [event["choices"][0] for event in stream_of([["a"], [], []])]
    assert [(choice["delta"].get("content"), choice["finish_reason"]) for choice in choices] == [
        ("", None),
        ("a", None),
        ("", "stop"),
    ]


def test_what_a_client_looks_for_is_there_though_nobody_asked() -> None:
    choice = body_of(["a"])
    assert {
        name: choice[name] for name in ("logprobs", "prompt_logprobs", "token_ids", "stop_reason")
    } == dict.fromkeys(("logprobs", "prompt_logprobs", "token_ids", "stop_reason"))
    assert choice["message"]["reasoning"] is None
    assert choice["message"]["tool_calls"] == []


def test_usage_is_counted_token_by_token_for_those_who_want_it_in_each_event() -> None:
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    usages = [event["usage"] for event in stream_of(["a", ["b"], "c"], **options)]
    assert [usage["completion_tokens"] for usage in usages] == [0, 1, 2, 3, 3]
    assert {usage["prompt_tokens_details"]["cached_tokens"] for usage in usages} == {16}


def test_a_tokens_id_is_told_once_whatever_it_shows() -> None:
    events = stream_of(SHOWN, return_token_ids=True)
    choices = [event["choices"][0] for event in events]
    assert sum(len(choice.get("token_ids") or []) for choice in choices) == len(SHOWN)
