"""From parts to events and bodies."""

import asyncio
import json
from typing import Any

from baton.messages import Token
from baton.requests.chat import ChatRequest
from baton.router.openai.bodies import CollectSink, chat_choice
from baton.router.openai.events import AnswerEvents, ChatEvents
from baton.router.openai.open_request import Tally
from baton.router.openai.parts import CallArguments, CallBegins, Part, Reasoning, Refusal
from baton.router.sink import Usage


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
