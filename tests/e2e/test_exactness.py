"""What comes over prefill and decode workers equals what the offline LLM gives, token for token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.cluster import MODEL, Cluster, prompt_of, stream_all
from tests.processes import eventually

from baton.beam_search import BeamSearchParams
from baton.llm import SamplingParams

PATHS = ["1p1d", "2p2d", "0p1d"]
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
LENGTHS = [1, 2, 15, 16, 17, 31, 32, 33, 63, 100, 127, 128, 129, 200, 256, 300, 513]
"""Around block edges, and beyond the 128 tokens that a worker computes in one step."""


BLOCK_NBYTES = 3 * 2 * 16 * 2 * 16 * 4


def received(cluster: Cluster) -> tuple[float, float]:
    """Return the bytes of KV that d0 has received, and the transfers; a worker reports them a moment after its answer."""
    values = cluster.workers["d0"].metrics()
    return values["kv_transfer_bytes_total"], values["kv_transfer_seconds_count"]


@pytest.fixture(autouse=True)
def nothing_is_left(cluster: Cluster) -> Iterator[None]:
    """After each test every block, lease and ticket is back."""
    yield
    cluster.assert_quiet()


@pytest.mark.parametrize("path", [*PATHS, "0p2d"])
def test_greedy_answers_of_every_prompt_length_equal_the_offline_ones(cluster: Cluster, path: str) -> None:
    prompts = [prompt_of(1000 * [*PATHS, "0p2d"].index(path) + length, length) for length in LENGTHS]
    wanted = cluster.offline(prompts, GREEDY)
    answers = stream_all(cluster, path, prompts)
    assert [answer.ids for answer in answers] == [choices[0].ids for choices in wanted]
    assert all(answer.finish_reason == "length" for answer in answers)


@pytest.mark.parametrize("path", PATHS)
def test_seeded_answers_equal_the_offline_ones(cluster: Cluster, path: str) -> None:
    prompts = [prompt_of(7000 + i, 40 + i) for i in range(4)]
    settings: dict[str, Any] = {"temperature": 0.8, "seed": 1234, "top_p": 0.9, "presence_penalty": 0.4}
    params = SamplingParams(max_tokens=24, ignore_eos=True, top_k=40, min_p=0.01, **settings)
    wanted = cluster.offline(prompts, params)
    answers = stream_all(cluster, path, prompts, top_k=40, min_p=0.01, **settings)
    assert [answer.ids for answer in answers] == [choices[0].ids for choices in wanted]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_n_choices_of_one_transferred_prompt_equal_the_offline_ones(
    cluster: Cluster, path: str, temperature: float
) -> None:
    prompt = prompt_of(8000 + PATHS.index(path), 150)
    params = SamplingParams(n=4, temperature=temperature, seed=5, max_tokens=20, ignore_eos=True)
    ((*wanted,),) = cluster.offline([prompt], params)
    answers = cluster.complete(path, prompt, n=4, temperature=temperature, seed=5, max_tokens=20)
    assert [answer.ids for answer in answers] == [choice.ids for choice in wanted]


@pytest.mark.parametrize("path", PATHS)
def test_beams_equal_the_offline_ones(cluster: Cluster, path: str) -> None:
    prompt = prompt_of(8100 + PATHS.index(path), 150)
    params = BeamSearchParams(beam_width=3, max_tokens=8, ignore_eos=True)
    (wanted,) = cluster.llm().beam_search([{"prompt_token_ids": prompt}], params)
    answers = cluster.complete(path, prompt, n=3, use_beam_search=True, max_tokens=8)
    assert [prompt + answer.ids for answer in answers] == [each.tokens for each in wanted.sequences]


def test_a_prompt_that_any_worker_has_cached_gets_the_same_answer(cluster: Cluster) -> None:
    prompt = prompt_of(9000, 333)
    ((wanted,),) = cluster.offline([prompt], GREEDY)
    cached = []
    # first nowhere; then on P alone (D is another); then on P and D
    for path in ("1p1d", "cross", "1p1d"):
        completion = cluster.completion(path, prompt)
        assert completion.choices[0].model_extra["token_ids"] == wanted.ids, path
        cached.append(completion.usage.prompt_tokens_details.cached_tokens)
    assert cached[0] == 0
    assert cached[1:] == [320, 320]


def test_a_prompt_that_only_the_decode_worker_has_cached_gets_the_same_answer(cluster: Cluster) -> None:
    prompt = prompt_of(9100, 200)
    longer = prompt + prompt_of(9101, 90)
    wanted = cluster.offline([prompt, longer], GREEDY)
    assert cluster.complete("0p1d", prompt)[0].ids == wanted[0][0].ids
    before = received(cluster)
    assert cluster.complete("1p1d", prompt)[0].ids == wanted[0][0].ids
    # it had all but the last block, which is not full
    eventually(lambda: received(cluster) == (before[0] + BLOCK_NBYTES, before[1] + 1), "the last block is counted")
    assert cluster.complete("1p1d", longer)[0].ids == wanted[1][0].ids


def test_kv_really_crosses_and_is_counted(cluster: Cluster) -> None:
    before = received(cluster)
    prompt = prompt_of(9200, 160)
    cluster.complete("1p1d", prompt)
    eventually(lambda: received(cluster) == (before[0] + 10 * BLOCK_NBYTES, before[1] + 1), "ten blocks are counted")


def test_decode_workers_prefill_for_each_other_and_it_is_told(cluster: Cluster) -> None:
    prompt = prompt_of(9300, 160)
    ((wanted,),) = cluster.offline([prompt], GREEDY)
    answer = cluster.client("0p2d").completions.with_raw_response.create(
        model=MODEL,
        prompt=prompt,
        temperature=0,
        max_tokens=24,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    assert (answer.parse().choices[0].model_extra or {})["token_ids"] == wanted.ids
    request_id = answer.headers["x-request-id"]
    told = httpx.get(f"{cluster.routers['0p2d'].url}/debug/route", params={"id": request_id}).json()
    (route,) = told["routes"]
    assert {route["chosen"]["prefill"], route["chosen"]["decode"]} == {"d0", "d1"}
    ways = {(option["prefill"], option["decode"]): option["terms"] for option in route["considered"]}
    assert set(ways) == {("d0", "d1"), ("d1", "d0")}
    assert all("delay" in terms for terms in ways.values())


def test_64_interleaved_streams_equal_the_offline_answers(cluster: Cluster) -> None:
    prompts = [prompt_of(10_000 + i, 5 + (i * 37) % 250) for i in range(64)]
    wanted = cluster.offline(prompts, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    answers = stream_all(cluster, "2p2d", prompts, max_tokens=40)
    assert [answer.ids for answer in answers] == [choices[0].ids for choices in wanted]


@pytest.mark.parametrize("path", PATHS)
def test_answers_that_end_by_themselves_end_alike(cluster: Cluster, path: str) -> None:
    prompts = [prompt_of(11_000 + i, 30 + i) for i in range(12)]
    params = SamplingParams(temperature=1.5, seed=3, max_tokens=60, stop_token_ids=tuple(range(5, 25)))
    wanted = cluster.offline(prompts, params)
    answers = stream_all(
        cluster,
        path,
        prompts,
        temperature=1.5,
        seed=3,
        max_tokens=60,
        ignore_eos=False,
        stop_token_ids=list(range(5, 25)),
    )
    assert [(a.ids, a.finish_reason) for a in answers] == [(c[0].ids, c[0].finish_reason) for c in wanted]
    assert "stop" in {answer.finish_reason for answer in answers}


@pytest.mark.parametrize("path", PATHS)
def test_an_answer_of_one_token_ends_at_once(cluster: Cluster, path: str) -> None:
    prompt = prompt_of(12_000 + PATHS.index(path), 48)
    ((wanted,),) = cluster.offline([prompt], SamplingParams(temperature=0, max_tokens=1))
    answers = cluster.complete(path, prompt, max_tokens=1, ignore_eos=False)
    assert [answer.ids for answer in answers] == [wanted.ids]


@pytest.mark.parametrize("path", ["1p1d", "0p1d"])
def test_prompt_scores_come_with_the_first_token(cluster: Cluster, path: str) -> None:
    prompt = prompt_of(13_000 + PATHS.index(path), 50)
    completion = cluster.completion(path, prompt, max_tokens=4, echo=True, logprobs=0)
    scores = completion.choices[0].logprobs.token_logprobs
    assert len(scores) == 54
    assert scores[0] is None
    assert all(score < 0 for score in scores[1:])
