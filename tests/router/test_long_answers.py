"""Answers that are made and sent in pieces are the same JSON as in one; what would be too much is refused before."""

import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.router.openai.json_pieces import Columns, Once, joined_pieces, list_pieces, object_pieces

from .cluster import Cluster, cluster

PROMPT = [20 + i % 60 for i in range(150)]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("serving"), [{}]) as made:
        yield made


def complete(serving: Cluster, **fields: Any) -> httpx.Response:
    return httpx.post(f"{serving.url}/v1/completions", json={"prompt": PROMPT, "max_tokens": 2} | fields)


@given(st.lists(st.integers()), st.integers(1, 4), st.lists(st.lists(st.text(max_size=2)), max_size=4))
def test_pieces_make_what_is_written_in_one(numbers: list[int], size: int, texts: list[list[str]]) -> None:
    small = [number % 2**60 for number in numbers]
    once = Once(list_pieces(small, size=size))
    lists = joined_pieces(list_pieces(each, size=size) for each in texts)
    pieces = object_pieces({"a": 1}, {"none": list_pieces(None), "small": once, "again": once, "texts": lists})
    assert json.loads(b"".join(pieces)) == {"a": 1, "none": None, "small": small, "again": small, "texts": texts}


@given(st.lists(st.integers(0, 9)), st.integers(1, 4))
def test_items_may_be_left_out(numbers: list[int], size: int) -> None:
    odd = list_pieces(numbers, lambda some: [each for each in some if each % 2], size)
    assert json.loads(b"".join(odd)) == [each for each in numbers if each % 2]


@given(st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1), st.lists(st.integers(0, 9), max_size=3))
def test_columns_are_the_rows_of_both_tables(before: list[list[int]], behind: list[int]) -> None:
    first, second = Columns(), Columns()
    for each in before:
        first.add({"x": each, "y": each})
    second.add({"x": behind, "y": behind})
    whole = [*chain(*before), *behind]
    assert json.loads(b"".join(first.then(second))) == {"x": whole, "y": whole}


def test_scores_of_many_tokens_are_those_of_the_stream(serving: Cluster) -> None:
    asked = {"n": 2, "max_tokens": 150, "logprobs": 2, "seed": 1}
    whole = complete(serving, **asked).json()
    streamed: dict[int, list[Any]] = {0: [], 1: []}
    for line in complete(serving, **asked, stream=True).text.splitlines():
        if line.startswith("data: {"):
            choice = json.loads(line.removeprefix("data: "))["choices"][0]
            streamed[choice["index"]].append(choice["logprobs"])
    for choice in whole["choices"]:
        rows = streamed[choice["index"]]
        assert len(rows) == 150
        for column, values in choice["logprobs"].items():
            assert values == [value for row in rows for value in row[column]]


def test_each_choice_has_the_prompts_scores_before_its_own(serving: Cluster) -> None:
    answer = complete(serving, n=3, echo=True, logprobs=1, prompt_logprobs=1, return_token_ids=True)
    choices = answer.json()["choices"]
    for choice in choices:
        columns = choice["logprobs"]
        assert {len(values) for values in columns.values()} == {len(PROMPT) + 2}
        assert columns["text_offset"] == sorted(columns["text_offset"])
        assert "".join(columns["tokens"]) == choice["text"]
        assert columns["token_logprobs"][0] is None
        assert len(choice["prompt_logprobs"]) == len(choice["prompt_token_ids"]) == len(PROMPT)
        assert choice["prompt_logprobs"] == choices[0]["prompt_logprobs"]


def test_only_a_long_answer_comes_in_parts(serving: Cluster) -> None:
    short = complete(serving)
    assert int(short.headers["content-length"]) == len(short.content)
    long = complete(serving, n=128, prompt_logprobs=15)
    assert len(long.content) > 2**20
    assert long.headers["transfer-encoding"] == "chunked"
    assert len(long.json()["choices"]) == 128


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"n": 128, "max_tokens": 1800, "logprobs": 20},
            r"logprobs=20 .*n=128 .*4838400 scores.* 4000000 .*ask with stream.*--max-answer-scores",
        ),
        (
            {"n": 128, "stream": True, "echo": True, "logprobs": 1},
            r"stream=True .* at most 1048576 may wait.*Ask without stream.*--stream-buffer-nbytes",
        ),
        ({"prompt": [20] * 1500, "n": 128, "stream": True, "return_token_ids": True}, "stream=True .*1152000 bytes"),
    ],
)
def test_scores_that_would_be_too_many_are_refused_before_any_is_made(
    serving: Cluster, fields: dict[str, Any], said: str
) -> None:
    answer = complete(serving, **fields)
    assert answer.status_code == 400
    assert re.search(said, answer.json()["error"]["message"])
