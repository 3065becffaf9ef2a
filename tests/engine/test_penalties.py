"""What depends on the tokens before: penalties and bad words, whose draws do not wait for the host to know them.

Answers equal what transformers' fp32 logits give under the rules' definitions, with the host one step behind and not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import load_tiny
from torch import Tensor

from baton.llm import LLM, SamplingParams
from baton.prompt import Prompt

NUM_TOKENS = 40
# Below this the order of additions decides between two tokens, and neither answer is the wrong one.
SMALLEST_GAP = 2e-4
PLAIN = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, detokenize=False)
RULES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.6},
    {"presence_penalty": 1.7},
    {"frequency_penalty": 1.1, "logit_bias": {7: 2.5, 100: -3.0}},
    {"repetition_penalty": 0.8, "presence_penalty": -0.5, "frequency_penalty": 2.0},
    {},
    {"repetition_penalty": 1.3, "allowed_token_ids": list(range(3, 120))},
    {"presence_penalty": -1.0, "frequency_penalty": 0.7, "min_tokens": NUM_TOKENS, "stop_token_ids": list(range(90))},
]


@dataclass
class Case:
    """Prompts, each with parameters of its own, and the answers that they must get."""

    folder: Path
    prompts: list[list[int]]
    params: list[SamplingParams]
    answers: list[list[int]]

    def llm(self, runs_behind: bool, **settings: Any) -> LLM:
        settings = {"kv_cache_memory_bytes": 2**24, "max_num_seqs": 8, "dtype": "float32", **settings}
        llm = LLM(self.folder, skip_tokenizer_init=True, use_tqdm=False, **settings)
        llm.engine._runs_behind = runs_behind  # what a GPU always does
        return llm

    def answered_by(self, llm: LLM) -> list[list[int]]:
        prompts = [{"prompt_token_ids": ids} for ids in self.prompts]
        return [output.outputs[0].token_ids for output in llm.generate(prompts, self.params, use_tqdm=False)]


@pytest.fixture(scope="module")
def case(tiny_checkpoint: Callable[[str], Path]) -> Case:
    folder = tiny_checkpoint("llama-3.1")
    peer = load_tiny(folder)
    generator = torch.Generator().manual_seed(11)
    prompts, params, answers = [], [], []
    for length, rules in zip((1, 17, 40, 100, 33, 64, 5), RULES, strict=True):
        gap = 0.0
        while gap < SMALLEST_GAP:
            prompt = torch.randint(0, peer.config.vocab_size, (length,), generator=generator).tolist()
            plain, _ = _answer_of(peer, prompt, PLAIN)
            # the second word's end, after its start, and the third's are what would have come; the fourth's never came
            words = [plain[2:3], plain[4:6], plain[9:12], [plain[0], plain[5], plain[3]]]
            chosen = PLAIN.replace(**rules).replace(bad_words_ids=words if rules else ())
            answer, gap = _answer_of(peer, prompt, chosen)
        prompts.append(prompt)
        params.append(chosen)
        answers.append(answer)
    return Case(folder, prompts, params, answers)


@torch.inference_mode()
def _answer_of(peer: Any, prompt: list[int], params: SamplingParams) -> tuple[list[int], float]:
    """Decode greedily by the definitions; gives the answer, and by how much its closest decision was won."""
    answer: list[int] = []
    gap = float("inf")
    for _ in range(NUM_TOKENS):
        logits = _changed(peer(torch.tensor([prompt + answer])).logits[0, -1].double(), prompt, answer, params)
        best = logits.topk(2)
        gap = min(gap, float(best.values[0] - best.values[1]))
        answer.append(int(best.indices[0]))
    return answer, gap


def _changed(x: Tensor, prompt: list[int], answer: list[int], params: SamplingParams) -> Tensor:
    if params.allowed_token_ids is not None:
        banned = torch.ones_like(x, dtype=torch.bool)
        banned[list(params.allowed_token_ids)] = False
        x[banned] = -torch.inf
    for token_id, value in (params.logit_bias or {}).items():
        x[token_id] += value
    if len(answer) < params.min_tokens:
        x[list(params.stop_token_ids)] = -torch.inf
    for word in params.bad_words_ids:
        if len(word) == 1 or tuple(answer[-len(word) + 1 :]) == word[:-1]:
            x[word[-1]] = -torch.inf
    for token_id in {*prompt, *answer}:
        x[token_id] *= 1 / params.repetition_penalty if x[token_id] > 0 else params.repetition_penalty
    for token_id, count in Counter(answer).items():
        x[token_id] -= params.frequency_penalty * count + params.presence_penalty
    return x


@pytest.mark.parametrize("runs_behind", [False, True])
def test_penalties_and_bad_words_give_what_their_definitions_give(case: Case, runs_behind: bool) -> None:
    assert case.answered_by(case.llm(runs_behind)) == case.answers


def test_the_rules_are_at_work(case: Case) -> None:
    plain = case.llm(False).generate([{"prompt_token_ids": ids} for ids in case.prompts], PLAIN, use_tqdm=False)
    same = [o.outputs[0].token_ids == answer for o, answer in zip(plain, case.answers, strict=True)]
    assert same == [not rules for rules in RULES]


@pytest.mark.parametrize("runs_behind", [False, True])
def test_counts_are_right_again_after_preemption(case: Case, runs_behind: bool) -> None:
    llm = case.llm(runs_behind, num_gpu_blocks_override=18, enable_prefix_caching=False, max_model_len=256)
    assert case.answered_by(llm) == case.answers
    assert llm.engine.scheduler.num_preemptions > 0


def test_counts_are_right_again_after_steps_that_were_discarded(case: Case) -> None:
    engine = case.llm(True).engine
    for i, (prompt, params) in enumerate(zip(case.prompts, case.params, strict=True)):
        engine.add(str(i), Prompt(prompt), params)
    answers: list[list[int]] = [[] for _ in case.prompts]
    while engine.has_work:
        for output in engine.step():
            answers[int(output.request_id)].append(output.token_id)
        if engine.num_steps in (3, 11, 12):
            engine.discard()
    assert answers == case.answers


@pytest.mark.parametrize("runs_behind", [False, True])
def test_rows_that_change_hands_keep_nothing_of_the_last_owner(case: Case, runs_behind: bool) -> None:
    llm = case.llm(runs_behind, max_num_seqs=2, max_num_batched_tokens=24)
    assert case.answered_by(llm) == case.answers
    assert case.answered_by(llm) == case.answers


@pytest.mark.parametrize("num_emitted", [1, 2, 7, 20])
def test_a_replay_counts_what_was_emitted_before(case: Case, num_emitted: int) -> None:
    engine = case.llm(True).engine
    for i, (prompt, params) in enumerate(zip(case.prompts, case.params, strict=True)):
        engine.add(str(i), Prompt(prompt), params, choices={0: case.answers[i][:num_emitted]})
    rest: list[list[int]] = [[] for _ in case.prompts]
    while engine.has_work:
        for output in engine.step():
            rest[int(output.request_id)].append(output.token_id)
    assert rest == [answer[num_emitted:] for answer in case.answers]


def test_logprobs_beside_penalties_are_of_the_raw_logits(case: Case) -> None:
    params = [params.replace(logprobs=2, max_tokens=6, min_tokens=0) for params in case.params]
    prompts = [{"prompt_token_ids": ids} for ids in case.prompts]
    outputs = case.llm(True).generate(prompts, params, use_tqdm=False)
    peer = load_tiny(case.folder)
    for prompt, output in zip(case.prompts, outputs, strict=True):
        choice = output.outputs[0]
        with torch.inference_mode():
            logits = peer(torch.tensor([prompt + choice.token_ids])).logits[0, len(prompt) - 1 : -1]
        for row, expected in zip(choice.logprobs or [], logits.log_softmax(-1), strict=True):
            for token_id, entry in row.items():
                assert entry.logprob == pytest.approx(expected[token_id].item(), abs=1e-4)


def test_the_host_stays_one_step_behind(case: Case) -> None:
    engine = case.llm(True).engine
    for i, (prompt, params) in enumerate(zip(case.prompts, case.params, strict=True)):
        engine.add(str(i), Prompt(prompt), params)
    answers: list[list[int]] = [[] for _ in case.prompts]
    while engine.has_work:
        for output in engine.step():
            answers[int(output.request_id)].append(output.token_id)
        is_last = all(len(answer) >= NUM_TOKENS - 1 for answer in answers)
        assert is_last or engine.num_steps == engine.num_collected + 1  # one is launched and not collected
    assert answers == case.answers
