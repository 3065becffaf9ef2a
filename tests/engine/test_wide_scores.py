"""Log-probabilities of the whole vocabulary, beside requests that want few or none."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from baton.engine.wide_scores import FEW
from baton.errors import InvalidRequest
from baton.llm import LLM, RequestOutput, SamplingParams
from baton.messages import Token, TokenLogprobs
from baton.protocol import Logprob
from baton.worker.runs import SCORES_NBYTES, parts_of

PROMPTS = [{"prompt_token_ids": [3 + (7 * i + k) % 90 for i in range(30)]} for k in range(5)]


@pytest.fixture(scope="module")
def llm(tiny_checkpoint: Callable[[str], Path]) -> LLM:
    return LLM(
        *(tiny_checkpoint("llama"),),
        use_tqdm=False,
        skip_tokenizer_init=True,
        num_gpu_blocks_override=64,
        max_num_batched_tokens=16,
        max_num_seqs=8,
        max_logprobs=-1,
    )


def ask(llm: LLM, *params: SamplingParams) -> list[RequestOutput]:
    return llm.generate(PROMPTS[: len(params)], list(params), use_tqdm=False)


def params_of(**given: int | float | None) -> SamplingParams:
    return SamplingParams(max_tokens=5, ignore_eos=True, detokenize=False, seed=5, **given)  # type: ignore[arg-type]


def check_all(row: dict[int, Logprob] | None, vocab_size: int) -> None:
    assert row is not None
    assert sorted(row) == list(range(vocab_size))
    assert torch.tensor([each.logprob for each in row.values()]).exp().sum().item() == pytest.approx(1, abs=1e-4)
    by_rank = sorted(row.values(), key=lambda each: each.rank or 0)
    assert all(a.logprob >= b.logprob for a, b in pairwise(by_rank))


def test_all_of_the_vocabulary_is_scored_and_others_get_what_they_want(llm: LLM) -> None:
    vocab_size = llm.engine.model.spec.vocab_size
    assert vocab_size > FEW
    wanted = [
        params_of(logprobs=-1, prompt_logprobs=-1),
        params_of(logprobs=2, prompt_logprobs=1, temperature=0.0),
        params_of(),
        params_of(logprobs=FEW + 1, repetition_penalty=1.5),
        params_of(logprobs=0, prompt_logprobs=FEW + 2),
    ]
    together = ask(llm, *wanted)
    first = together[0]
    for row in (*(first.outputs[0].logprobs or ()), *(first.prompt_logprobs or ())[1:]):
        check_all(row, vocab_size)
    for i, params in enumerate(wanted):
        alone = llm.generate(PROMPTS[i], params, use_tqdm=False)[0]
        assert alone.outputs[0].token_ids == together[i].outputs[0].token_ids
        for ours, its in (
            (together[i].outputs[0].logprobs, alone.outputs[0].logprobs),
            (together[i].prompt_logprobs, alone.prompt_logprobs),
        ):
            assert [None if each is None else len(each) for each in ours or ()] == [
                None if each is None else len(each) for each in its or ()
            ]
    few = together[1].outputs[0].logprobs
    assert few is not None
    assert [len(row) for row in few] == [2] * 5  # the token that was taken is the likeliest
    wide = together[3].outputs[0].logprobs
    assert wide is not None
    assert all(FEW + 1 <= len(row) <= FEW + 2 for row in wide)


def test_more_than_there_are_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="this model has"):
        ask(llm, params_of(logprobs=10**6))


def test_without_leave_no_more_than_twenty_are_given(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "_max_logprobs", 20)
    for field in ("logprobs", "prompt_logprobs"):
        for value in (-1, 21):
            with pytest.raises(InvalidRequest, match=rf"{field}={value}.*0 to 20.*max_logprobs"):
                ask(llm, params_of(**{field: value}))


def test_what_one_step_says_is_divided_by_what_its_scores_take() -> None:
    def token(position: int, num_scores: int) -> Token:
        row = TokenLogprobs([1] * num_scores, [0.0] * num_scores, [1] * num_scores)
        return Token("r" * 32, 0, 0, position, 1, logprobs=row)

    most = SCORES_NBYTES // 17
    tokens = [token(i, num) for i, num in enumerate((most // 2, most // 3, most // 2, 2 * most, 1, 1))]
    assert [[each.position for each in part] for part in parts_of(tokens)] == [[0, 1], [2], [3], [4, 5]]
