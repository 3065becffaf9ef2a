"""What `baton bench serve` sends."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.bench.loads import Shape, Span, poisson
from baton.bench.serve_plan import Asked
from baton.bench.traces import TRACE_BLOCK_LEN, read_trace
from baton.errors import ConfigError

SHAPE = Shape(input_len=(20, 60), output_len=(2, 9), vocab=200)


@given(rate=st.floats(0.5, 200), seed=st.text(max_size=5))
def test_the_same_seed_and_rate_give_the_same_arrivals_and_others_differ(rate, seed) -> None:
    load = poisson(SHAPE, rate, Span(count=12), seed=seed)
    assert load == poisson(SHAPE, rate, Span(count=12), seed=seed)
    assert load.arrivals != poisson(SHAPE, rate, Span(count=12), seed=seed + "x").arrivals
    times = [arrival.at_s for arrival in load.arrivals]
    assert times == sorted(times)
    for arrival in load.arrivals:
        (turn,) = arrival.turns
        assert 20 <= len(turn.tokens) <= 60
        assert 2 <= turn.output_len <= 9
        assert all(10 <= token < 200 for token in turn.tokens)


@pytest.mark.parametrize("name", ["input_len", "output_len", "turn_len"])
@pytest.mark.parametrize("lengths", [(100, 50), (0, 4), (-4, -1)])
def test_lengths_are_a_shortest_and_a_longest(name, lengths) -> None:
    with pytest.raises(ConfigError, match=rf"{name}={lengths[0]},{lengths[1]} is not valid: give the shortest"):
        Shape(**{name: lengths})


def test_requests_of_a_span_of_seconds_come_at_the_rate_asked_for() -> None:
    load = poisson(SHAPE, 50, Span(seconds=40, warm_up_s=10), seed="a")
    assert load.warm_up_s == 10
    assert load.arrivals[-1].at_s < 50
    assert 2300 < len(load.arrivals) < 2700


def test_an_infinite_rate_sends_all_at_once() -> None:
    load = poisson(SHAPE, float("inf"), Span(count=7), seed="a")
    assert [arrival.at_s for arrival in load.arrivals] == [0.0] * 7


def test_prompts_share_prefixes_and_the_first_ones_most_often() -> None:
    shape = Shape(input_len=(5, 5), output_len=(1, 1), num_prefixes=4, prefix_len=32)
    load = poisson(shape, 10, Span(count=400), seed="a")
    prompts = [arrival.turns[0].tokens for arrival in load.arrivals]
    shared = [tuple(prompt[:32]) for prompt in prompts]
    often = sorted((shared.count(prefix) for prefix in set(shared)), reverse=True)
    assert len(often) == 4
    assert often[0] > 2 * often[3]
    assert len({tuple(prompt[32:]) for prompt in prompts}) == 400


def test_a_conversation_has_turns_with_pauses() -> None:
    shape = Shape(input_len=(9, 9), output_len=(1, 4), num_turns=3, turn_len=(5, 5), think_s=2)
    arrivals = poisson(shape, 10, Span(count=200), seed="a").arrivals
    assert all([len(turn.tokens) for turn in arrival.turns] == [9, 5, 5] for arrival in arrivals)
    pauses = [turn.pause_s for arrival in arrivals for turn in arrival.turns[1:]]
    assert 1.6 < sum(pauses) / len(pauses) < 2.4
    assert shape.longest == 9 + 2 * 5 + 3 * 4


def test_what_does_not_fit_the_context_is_refused() -> None:
    asked = Asked(shape=SHAPE, span=Span(count=3), seed="a")
    assert len(asked.load_at(5.0, 69).arrivals) == 3
    with pytest.raises(ConfigError, match=r"may have 69 tokens, but the server's context is 68\. Lower"):
        asked.load_at(5.0, 68)


def test_a_trace_keeps_its_times_lengths_and_what_is_shared(tmp_path) -> None:
    rows = [
        {"timestamp": 4000, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]},
        {"timestamp": 5000, "input_length": 9000, "output_length": 5, "hash_ids": [1, 9]},
        {"timestamp": 6000, "input_length": 700, "output_length": 7, "hash_ids": [1, 3]},
    ]
    file = tmp_path / "trace.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    load = read_trace(file, None, speed=2.0, max_len=1000, vocab=500, seed="a")
    assert [arrival.at_s for arrival in load.arrivals] == [0.0, 1.0]
    first, second = (arrival.turns[0].tokens for arrival in load.arrivals)
    assert (len(first), len(second)) == (600, 700)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    assert TRACE_BLOCK_LEN <= shared < TRACE_BLOCK_LEN + 5


@pytest.mark.parametrize("text", ["not json", "[]", '{"timestamp": 1}', '{"timestamp": 1, "input_length": null}'])
def test_what_is_no_trace_is_refused(tmp_path, text) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError, match="It must have one JSON object a line with timestamp"):
        read_trace(file, None, speed=1.0, max_len=1000, vocab=500, seed="a")
