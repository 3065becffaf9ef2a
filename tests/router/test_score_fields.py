"""Fields that say what is scored, and how tokens are named, through a router."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openai import BadRequestError

from .cluster import Cluster, cluster

MESSAGES: list[Any] = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("scores"), [{"worker_id": "d0"}]) as made:
        yield made


def chat(serving: Cluster, **fields: Any) -> Any:
    own = {name: fields.pop(name) for name in ("logprobs", "top_logprobs", "stream") if name in fields}
    return serving.client().chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=3, extra_body=fields, **own
    )


def test_named_tokens_are_scored_in_place_of_the_likeliest(serving: Cluster) -> None:
    answer = chat(serving, logprobs=True, top_logprobs=2, logprob_token_ids=[40, 41])
    for position in answer.choices[0].logprobs.content:
        assert [each.logprob for each in position.top_logprobs] == [-40.0, -41.0]
    completion = serving.client().completions.create(
        model="tiny", prompt="hello", max_tokens=2, logprobs=1, extra_body={"logprob_token_ids": [300]}
    )
    scores = completion.choices[0].logprobs
    assert scores is not None
    assert scores.top_logprobs is not None
    assert all(-300.0 in position.values() and len(position) == 2 for position in scores.top_logprobs)


def test_naming_tokens_needs_scores_to_be_asked_for(serving: Cluster) -> None:
    with pytest.raises(BadRequestError, match="logprob_token_ids=a list of 1 is not valid: logprobs is not set"):
        chat(serving, logprob_token_ids=[40])
    with pytest.raises(BadRequestError, match="token ids of this model are 0 to 399"):
        chat(serving, logprobs=True, logprob_token_ids=[400])


def test_tokens_are_named_by_their_ids_whole_and_streamed(serving: Cluster) -> None:
    as_ids = {"return_tokens_as_token_ids": True, "return_token_ids": True, "logprobs": True, "top_logprobs": 1}
    choice = chat(serving, **as_ids).choices[0]
    assert [each.token for each in choice.logprobs.content] == [f"token_id:{each}" for each in choice.token_ids]
    assert bytes(choice.logprobs.content[0].bytes).decode() == choice.message.content[0]
    streamed = [
        event.choices[0].logprobs.content[0].token
        for event in chat(serving, stream=True, **as_ids)
        if event.choices and event.choices[0].logprobs
    ]
    assert streamed == [each.token for each in choice.logprobs.content]
    for stream in (False, True):
        answer: Any = serving.client().completions.create(
            *(),
            model="tiny",
            prompt=[40, 41],
            echo=True,
            max_tokens=1,
            logprobs=1,
            stream=stream,
            extra_body={"return_tokens_as_token_ids": True},
        )
        scores = [each.choices[0].logprobs for each in (answer if stream else [answer])]
        names = [name for each in scores if each is not None for name in each.tokens]
        assert names[:2] == ["token_id:40", "token_id:41"]
        assert all(name.startswith("token_id:") for name in names)


def test_a_rule_for_repetitions_that_is_none_is_refused_by_its_field(serving: Cluster) -> None:
    assert chat(serving, repetition_detection={"max_pattern_size": 3, "min_count": 2}).choices
    with pytest.raises(BadRequestError, match=r"repetition_detection\.min_count=1 is not valid") as refused:
        chat(serving, repetition_detection={"max_pattern_size": 3, "min_count": 1})
    assert refused.value.param == "repetition_detection.min_count"
