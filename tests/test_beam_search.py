"""Beams equal those of a plain search, written as it is told, that runs transformers' model over whole sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from baton.beam_search import BeamSearch, BeamSearchParams
from baton.config import demo_model_path
from baton.errors import InvalidRequest
from baton.llm import LLM, SamplingParams
from baton.messages import TokenLogprobs

PROMPTS = ["2+2=", "Tell me a story about a miller."]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(use_tqdm=False, kv_cache_memory_bytes=2**26, max_num_seqs=8, dtype="float32")


@pytest.fixture(scope="module")
def peer() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32).eval()


@torch.inference_mode()
def plain_search(peer: Any, prompt: list[int], params: BeamSearchParams, eos: int) -> list[tuple[list[int], float]]:
    """Keep every completed answer, and compute every beam from its first token on."""
    beams: list[tuple[list[int], float]] = [(prompt, 0.0)]
    completed: list[tuple[list[int], float]] = []
    for _ in range(params.max_tokens):
        logits = peer(torch.tensor([tokens for tokens, _ in beams])).logits[:, -1]
        values, ids = logits.log_softmax(-1).topk(2 * params.beam_width)
        found = [
            ([*tokens, token], score + value)
            for (tokens, score), *likeliest in zip(beams, ids.tolist(), values.tolist(), strict=True)
            for token, value in zip(*likeliest, strict=True)
        ]
        ended = [each for each in found if each[0][-1] == eos and not params.ignore_eos]
        completed += ended
        beams = sorted((each for each in found if each not in ended), key=lambda each: -each[1])[: params.beam_width]

    def rank(beam: tuple[list[int], float]) -> float:
        tokens, score = beam
        return score / (len(tokens) - (tokens[-1] == eos)) ** params.length_penalty

    return sorted(completed + beams, key=rank, reverse=True)[: params.beam_width]


@pytest.mark.parametrize(
    "params",
    [
        BeamSearchParams(beam_width=1, max_tokens=12),
        BeamSearchParams(beam_width=4, max_tokens=8),
        BeamSearchParams(beam_width=3, max_tokens=6, length_penalty=0.0),
        BeamSearchParams(beam_width=3, max_tokens=6, length_penalty=2.5, ignore_eos=True),
        BeamSearchParams(beam_width=12, max_tokens=3),
    ],
    ids=str,
)
def test_beams_equal_a_plain_search_over_transformers(llm: LLM, peer: Any, params: BeamSearchParams) -> None:
    tokenizer, (eos,) = llm.get_tokenizer(), llm.engine.model.spec.eos_token_ids
    outputs = llm.beam_search(PROMPTS, params)
    for text, output in zip(PROMPTS, outputs, strict=True):
        prompt = tokenizer.encode(text)
        expected = plain_search(peer, prompt, params, eos)
        assert [each.tokens for each in output.sequences] == [tokens for tokens, _ in expected]
        assert [each.cum_logprob for each in output.sequences] == pytest.approx([s for _, s in expected], abs=1e-3)
        for each in output.sequences:
            answer = each.tokens[len(prompt) :]
            assert each.finish_reason == ("stop" if answer[-1] == eos and not params.ignore_eos else "length")
            scores = [row[token].logprob for row, token in zip(each.logprobs, answer, strict=True)]
            assert sum(scores) == pytest.approx(each.cum_logprob)
            assert each.text == tokenizer.decode(each.tokens)
    assert llm.engine.pool.num_held == 0
    assert not llm.engine.has_work


def test_one_beam_says_the_likeliest_tokens(llm: LLM) -> None:
    greedy = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=9), use_tqdm=False)
    params = BeamSearchParams(beam_width=1, max_tokens=9, length_penalty=0.0)
    for answer, beams in zip(greedy, llm.beam_search(PROMPTS, params, concurrency_limit=1), strict=True):
        said = answer.outputs[0].token_ids
        tokens = beams.sequences[0].tokens[len(answer.prompt_token_ids) :]
        assert tokens[: len(said)] == said or beams.sequences[0].finish_reason == "stop"


def test_early_stopping_ends_with_as_many_completed_answers_as_beams() -> None:
    params = BeamSearchParams(beam_width=2, max_tokens=50, early_stopping=True)
    search = BeamSearch(params, num_prompt=3, eos_token_ids=(9,))
    row = TokenLogprobs([1, 1, 9, 2, 3], [-0.5, -0.5, -1.0, -2.0, -3.0], [1, 1, 2, 3, 4])
    search.advance([row])
    assert not search.is_over
    search.advance([row, row])
    assert search.is_over
    assert [beam.tokens for beam in search.best()] == [[], [1]]  # -1 over three tokens, -1.5 over four
    assert all(beam.end == 9 for beam in search.best())


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"beam_width": 0, "max_tokens": 4}, "beam_width=0 is not valid: it must be a whole number from 1 to 32"),
        ({"beam_width": 2, "max_tokens": 4, "length_penalty": float("nan")}, "length_penalty=nan"),
        ({"beam_width": 2, "max_tokens": 10**6}, "prompt 0: max_tokens=1000000"),
    ],
)
def test_a_search_that_cannot_be_made_is_refused_by_name(llm: LLM, params: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        llm.beam_search(["hi"], BeamSearchParams(**params))
