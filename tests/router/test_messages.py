"""The wire types between router and worker: round trips, and what is refused."""

import contextlib
import math
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.messages import (
    BadMessage,
    Blocks,
    Cancel,
    ChoiceStart,
    Computed,
    Hello,
    Legs,
    Load,
    OpenLeg,
    Outputs,
    Start,
    Ticket,
    Token,
    TokenLogprobs,
    Transfer,
    decode_to_router,
    decode_to_worker,
    encode,
)
from baton.prompt import Prompt, Span
from baton.protocol import SamplingParams

ID = uuid.uuid4().hex


def make_start(**changes: object) -> Start:
    fields = {
        "request_id": ID,
        "epoch": 0,
        "leg": "decode",
        "prompt": Prompt([1, 2, 3], (Span(1, 2, b"cat", "there"),)),
        "choices": [ChoiceStart(0, [])],
        "params": SamplingParams(temperature=0.5, stop=("a",), logit_bias={3: 1.0}),
        "seed": 7,
    } | changes
    return Start(**fields)  # type: ignore[arg-type]


def test_messages_survive_the_wire_unchanged() -> None:
    start = make_start()
    ticket = Ticket(bytes(16), 0, bytes(16), "layout", "tcp://127.0.0.1:1", "inc", 3)
    hello = Hello("r", True, number=3, legs=[OpenLeg("a" * 32, 1, [0, 2])])
    for message in (hello, start, make_start(ticket=ticket), Cancel("a" * 32, 3, 1)):
        assert decode_to_worker(encode(message)) == message
    token = Token("a" * 32, 1, 0, 5, 9, "stop", None, 4, 0, TokenLogprobs([9], [-0.5], [1]))
    for answer in (
        Outputs("w", "i", [token], Load(num_running=1), computed=[Computed("a" * 32, 1, 5, 4, 0.1, 0.2)]),
        Blocks("w", "i", 1, [b"h" * 16], []),
        Legs("i", 3, [OpenLeg("a" * 32, 1, [0])]),
    ):
        assert decode_to_router(encode(answer)) == answer


def test_every_sampling_parameter_survives_the_wire() -> None:
    params = SamplingParams(
        n=2, top_k=-1, stop=("x", "y"), stop_token_ids=(3,), bad_words_ids=((1, 2),), allowed_token_ids=(1, 2, 3)
    )
    assert decode_to_worker(encode(make_start(params=params))).params == params  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "changes",
    [
        {"request_id": "short"},
        {"epoch": -1},
        {"prompt": Prompt([])},
        {"prompt": Prompt([-1])},
        {"choices": [ChoiceStart(0, [5, -1])]},
        {"choices": []},
        {"choices": [ChoiceStart(1)]},
        {"seconds_left": math.nan},
        {"choices": [ChoiceStart(0), ChoiceStart(0)], "params": SamplingParams(n=2)},
        {"leg": "other"},
        {"ticket": Ticket(b"", 0, bytes(16), "l", "s", "i", 3)},
        {"ticket": Ticket(bytes(16), 1, bytes(16), "l", "s", "i", 3)},
        {"ticket": Ticket(bytes(16), 0, bytes(16), "l", "s", "i", 4)},
    ],
)
def test_a_start_that_no_router_sends_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(BadMessage):
        decode_to_worker(encode(make_start(**changes)))


@pytest.mark.parametrize(
    "said",
    [
        {"tokens": [Token(ID, 0, 0, 1, -1)]},
        {"tokens": [Token(ID, 0, 0, 1, 2**40)]},
        {"tokens": [Token(ID, 0, 0, -1, 1)]},
        {"tokens": [Token(ID, 0, -1, 1, 1)]},
        {"tokens": [Token(ID, 0, 0, 1, 1, num_cached=-5)]},
        {"load": Load(prefill_rate=math.nan)},
        {"load": Load(decode_step_ms=math.inf)},
        {"load": Load(decode_step_ms=-1.0)},
        {"load": Load(kv_free_blocks=-1)},
        {"transfers": [Transfer(ID, 0, "i", 16, 4096, 1.0, math.nan)]},
        {"computed": [Computed(ID, 0, 16, 0, -1.0, 1.0)]},
    ],
)
def test_what_no_worker_can_have_measured_is_no_message(said: dict[str, Any]) -> None:
    """One rate that is no number would spoil every choice between workers from then on."""
    outputs = Outputs("w", "i", [], Load())
    assert decode_to_router(encode(outputs)) == outputs
    with pytest.raises(BadMessage):
        decode_to_router(encode(msgspec.structs.replace(outputs, **said)))


def test_sampling_parameters_out_of_range_are_refused_on_arrival() -> None:
    frame = msgspec.msgpack.decode(encode(make_start()))
    frame[6]["temperature"] = -1.0
    with pytest.raises(BadMessage, match="temperature"):
        decode_to_worker(msgspec.msgpack.encode(frame))


@pytest.mark.parametrize("span", [[2, 2, b"cat"], [-1, 1, b"cat"], [0, 0, b"cat"], [0, 1, b""], [0, 1], 3])
def test_media_outside_the_prompt_or_without_content_are_refused_on_arrival(span: object) -> None:
    frame = msgspec.msgpack.decode(encode(make_start()))
    frame[4][1] = [span]
    with pytest.raises(BadMessage):
        decode_to_worker(msgspec.msgpack.encode(frame))


@given(st.binary(max_size=200))
def test_any_bytes_give_a_message_or_bad_message(frame: bytes) -> None:
    for decode in (decode_to_worker, decode_to_router):
        with contextlib.suppress(BadMessage):
            decode(frame)


def test_a_string_that_is_no_text_is_a_bad_message() -> None:
    for decode in (decode_to_worker, decode_to_router):
        with pytest.raises(BadMessage):
            decode(b"\x92\xa1\x80\x00")


def test_outputs_of_a_worker_that_does_not_report_what_it_computed_are_read() -> None:
    older = ["outputs", "w", "i", [], []]
    assert decode_to_router(msgspec.msgpack.encode(older)) == Outputs("w", "i", [], Load())
