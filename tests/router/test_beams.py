"""Beam search and best_of through a router: whole answers, the best one first, whatever happens to a worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from .cluster import FIRST_WORD, Cluster, cluster

BEST = [FIRST_WORD] * 6
"""Fake workers find their words likely in this order, wherever they stand."""


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    ends = {"eos_token_id": FIRST_WORD + 1}
    workers: list[dict[str, Any]] = [{"worker_id": "d0", **ends}, {"worker_id": "p0", "legs": ["prefill"], **ends}]
    with cluster(tmp_path_factory.mktemp("beams"), workers) as made:
        yield made


def post(serving: Cluster, path: str, pin: str = "", **body: Any) -> Any:
    headers = {"x-baton-pin": pin} if pin else {}
    answer = httpx.post(f"{serving.url}{path}", json=body, headers=headers, timeout=60)
    return answer.json() | {"status": answer.status_code}


def complete(serving: Cluster, **fields: Any) -> Any:
    body = {"prompt": [40, 41, 42], "max_tokens": 6, "return_token_ids": True, "use_beam_search": True}
    body |= {"ignore_eos": True}
    return post(serving, "/v1/completions", **(body | fields))


@pytest.mark.parametrize("pin", ["path=local", "path=remote"])
def test_the_answers_are_the_likeliest_the_best_one_first(serving: Cluster, pin: str) -> None:
    answer = complete(serving, n=3, logprobs=2, pin=pin)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["choices"][0]["token_ids"] == BEST
    for choice in answer["choices"][1:]:
        assert sorted(choice["token_ids"]) == [*BEST[1:], FIRST_WORD + 1]
    for choice in answer["choices"]:
        scores = choice["logprobs"]
        assert list(scores["token_logprobs"]) == [-1.5 - t + FIRST_WORD for t in choice["token_ids"]]
        assert all(len(each) == 2 for each in scores["top_logprobs"])
        assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 18
    assert "".join(choice["text"][-1] for choice in answer["choices"])


def test_a_chat_and_several_prompts_are_searched_alike(serving: Cluster) -> None:
    messages = [{"role": "user", "content": "hello"}]
    fields = {"n": 2, "max_tokens": 6, "use_beam_search": True, "ignore_eos": True}
    chat = post(serving, "/v1/chat/completions", messages=messages, **fields)
    text = chat["choices"][0]["message"]["content"]
    assert len(chat["choices"]) == 2
    answer = complete(serving, prompt=["a", "b"], n=2, best_of=3)
    assert [choice["text"] for choice in answer["choices"][::2]] == [text, text]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]


def test_an_end_of_text_is_no_part_of_an_answer(serving: Cluster) -> None:
    ends = {"n": 2, "ignore_eos": False, "early_stopping": True, "length_penalty": 2}  # at their second likeliest word
    answer = complete(serving, **ends, max_tokens=500, logprobs=1)
    shown = complete(serving, **ends, include_stop_str_in_output=True)
    assert [choice["token_ids"] for choice in answer["choices"]] == [[FIRST_WORD], []]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop", "stop"]
    assert [choice["stop_reason"] for choice in answer["choices"]] == [FIRST_WORD + 1] * 2
    assert [len(choice["logprobs"]["tokens"]) for choice in answer["choices"]] == [1, 0]
    assert answer["usage"]["completion_tokens"] == 1
    assert shown["choices"][0]["token_ids"] == [FIRST_WORD, FIRST_WORD + 1]


def test_a_search_goes_on_where_a_worker_died(tmp_path: Path) -> None:
    workers = [{"worker_id": f"d{i}", "die_after_tokens": dies, "step_ms": 1.0} for i, dies in enumerate((14, 0))]
    with cluster(tmp_path, workers) as made:
        answer = complete(made, n=4, max_tokens=40, pin="decode=d0")
        replayed = made.state.metrics.replays.total
        assert not made.ask(lambda router: router.dispatcher.flows)
    assert answer["choices"][0]["token_ids"] == [FIRST_WORD] * 40
    assert replayed == 1


def test_a_search_whose_client_has_left_is_over(serving: Cluster) -> None:
    body = {"prompt": "x", "max_tokens": 1500, "n": 4, "use_beam_search": True}
    with httpx.Client(timeout=60) as http, pytest.raises(httpx.ReadTimeout):
        http.post(f"{serving.url}/v1/completions", json=body, timeout=0.3)
    assert serving.ask(lambda router: not router.dispatcher.flows, until=True)
    assert serving.ask(lambda router: router.dispatcher._admission.blocks) == 0


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"stream": True}, "stream"),
        ({"n": 33}, "n"),
        ({"stop": ["x"]}, "stop"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"use_beam_search": False, "length_penalty": 2}, "length_penalty"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "structured_outputs"),
    ],
)
def test_what_a_search_does_not_keep_to_is_refused_by_name(serving: Cluster, fields: Any, field: str) -> None:
    answer = complete(serving, **fields)
    assert (answer["status"], answer["error"]["param"]) == (400, field)


def test_best_of_gives_the_likeliest_of_those_that_were_made(serving: Cluster) -> None:
    made = complete(serving, use_beam_search=False, n=5, logprobs=0, seed=3, max_tokens=3)
    best = complete(serving, use_beam_search=False, n=2, best_of=5, seed=3, max_tokens=3)
    # fake workers score all that they say alike, so the first are the best
    assert [choice["token_ids"] for choice in best["choices"]] == [c["token_ids"] for c in made["choices"][:2]]
    assert best["choices"][0]["logprobs"] is None
    assert best["usage"]["completion_tokens"] == 15
    for fields in ({"n": 3, "best_of": 2}, {"best_of": 2, "stream": True}):
        refused = complete(serving, use_beam_search=False, **fields)
        assert (refused["status"], refused["error"]["param"]) == (400, "best_of")
