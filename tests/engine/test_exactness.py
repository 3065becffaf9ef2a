"""Greedy ids equal transformers' in fp32, whatever shares the batch and however the prompt was computed.

On a machine with a GPU Baton runs there, with captured steps and the host one step behind; transformers on the CPU.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import FAMILIES, load_tiny

from baton.engine.engine import TokenOutput
from baton.engine.kv_cache import KVCacheSpec
from baton.engine.windows import Reach
from baton.llm import LLM, SamplingParams
from baton.models.config import read_spec
from baton.prompt import Prompt

NUM_TOKENS = 64
PROMPT_LENS = (1, 2, 15, 16, 17, 40, 100, 150)
# Below this the order of additions decides between two tokens, and neither answer is the wrong one.
SMALLEST_GAP = 2e-4
# transformers changes LongRoPE's factors when an answer grows past the original context; Baton takes those of the
# longest context from the start, so they are compared beyond it.
LONGROPE_LENS = (33, 40, 47, 48, 49, 64, 100, 150)
# One of each family goes through every way of computing; the other variants through the plain one.
MAIN = ("llama-3.1", "mistral", "qwen2-sliding", "qwen3", "gemma2", "phi3-longrope", "gpt2", "opt")
# These go through all of them at once: chunks, small blocks, cached prefixes, preemption, a host behind.
OTHERS = ("gemma3", "cohere2", "bloom", "deepseek-v3", "exaone4", "vaultgemma", "nemotron")
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, detokenize=False)


@dataclass
class Case:
    """A checkpoint, prompts, and what transformers answers to them."""

    folder: Path
    prompts: list[list[int]]
    answers: list[list[int]]
    peer: Any

    def llm(self, **settings: Any) -> LLM:
        settings = {
            "kv_cache_memory_bytes": 2**24,
            "max_num_seqs": 8,
            "max_num_batched_tokens": 512,
            "dtype": "float32",
            **settings,
        }
        return LLM(self.folder, skip_tokenizer_init=True, use_tqdm=False, **settings)

    def small_llm(self, *, max_num_batched_tokens: int, block_size: int, **settings: Any) -> LLM:
        """Load with hardly more blocks than one sequence of 256 tokens needs."""
        spec = KVCacheSpec.of(read_spec(self.folder), block_size, torch.float32, 256)
        reach = Reach(block_size, spec.windows, max_num_batched_tokens)
        return self.llm(
            num_gpu_blocks_override=reach.num_held(256) + 2 * reach.num_groups,
            max_model_len=256,
            max_num_batched_tokens=max_num_batched_tokens,
            block_size=block_size,
            **settings,
        )

    def answer(self, llm: LLM, params: SamplingParams = GREEDY) -> list[list[int]]:
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in self.prompts], params, use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs]


@pytest.fixture(scope="module")
def case(tiny_checkpoint: Callable[[str], Path]) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def build(family: str) -> Case:
        if family not in made:
            lens = LONGROPE_LENS if family == "phi3-longrope" else PROMPT_LENS
            made[family] = _case(tiny_checkpoint(family), lens)
        return made[family]

    return build


@torch.inference_mode()
def _case(folder: Path, prompt_lens: tuple[int, ...]) -> Case:
    peer = load_tiny(folder)
    peer.generation_config.eos_token_id = None
    rng = random.Random(7)
    prompts, answers = [], []
    for length in prompt_lens:
        gap = 0.0
        while gap < SMALLEST_GAP:
            prompt = [rng.randrange(peer.config.vocab_size) for _ in range(length)]
            answer, gap = _answer_of(peer, prompt)
        prompts.append(prompt)
        answers.append(answer)
    return Case(folder, prompts, answers, peer)


def _answer_of(peer: Any, prompt: list[int]) -> tuple[list[int], float]:
    """Give transformers' greedy answer, and by how much its closest decision was won."""
    ids = torch.tensor([prompt])
    out = peer.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.cat(out.logits).topk(2).values
    return out.sequences[0, len(prompt) :].tolist(), (best[:, 0] - best[:, 1]).min().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_many_lengths_equals_transformers(case: Callable[[str], Case], family: str) -> None:
    subject = case(family)
    assert subject.answer(subject.llm()) == subject.answers


# Steps of whole blocks and more are those of the tests below, which have 32 and 48 tokens; chunks of one token are the same
# to all families without a window.
@pytest.mark.parametrize(
    ("family", "budget"),
    [
        *((family, 7) for family in MAIN),
        ("llama-3.1", 1),
        ("mistral", 1),
        ("gemma2", 1),
        ("llama-3.1", 16),
        ("gemma2", 16),
    ],
)
def test_chunked_prefill_changes_no_token(case: Callable[[str], Case], family: str, budget: int) -> None:
    subject = case(family)
    llm = subject.llm(max_num_batched_tokens=budget, max_num_seqs=min(budget, 8))
    assert subject.answer(llm) == subject.answers


@pytest.mark.parametrize("family", MAIN)
def test_a_cached_prefix_changes_no_token(case: Callable[[str], Case], family: str) -> None:
    subject = case(family)
    llm = subject.llm()
    subject.answer(llm)
    prompts = [{"prompt_token_ids": ids} for ids in subject.prompts]
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert [output.outputs[0].token_ids for output in outputs] == subject.answers
    cached = [output.num_cached_tokens for output in outputs]
    assert cached == [(len(prompt) - 1) // 16 * 16 for prompt in subject.prompts]


@pytest.mark.parametrize("family", MAIN)
def test_preemption_and_resumption_change_no_token(case: Callable[[str], Case], family: str) -> None:
    subject = case(family)
    llm = subject.small_llm(enable_prefix_caching=False, max_num_batched_tokens=32, block_size=16)
    assert subject.answer(llm) == subject.answers
    assert llm.engine.scheduler.num_preemptions > 0


@pytest.mark.parametrize("family", [*MAIN, *OTHERS])
def test_a_host_one_step_behind_changes_no_token(case: Callable[[str], Case], family: str) -> None:
    # what a GPU always does; the steps are those of the CPU
    subject = case(family)
    llm = subject.small_llm(max_num_batched_tokens=12 if family == "mistral" else 48, block_size=8)
    llm.engine._runs_behind = True
    assert subject.answer(llm) == subject.answers
    assert llm.engine.scheduler.num_preemptions > 0
    assert llm.engine.pool.num_held == 0


@pytest.mark.parametrize(("family", "num_groups"), [("mistral", 1), ("gemma2", 3), ("qwen2-sliding", 3)])
@pytest.mark.parametrize("runs_behind", [False, True])
def test_layers_with_a_window_hold_no_more_than_it_and_a_chunk(
    case: Callable[[str], Case], family: str, num_groups: int, runs_behind: bool
) -> None:
    subject = case(family)
    engine = subject.llm(block_size=4, max_num_batched_tokens=8, max_num_seqs=1, enable_prefix_caching=False).engine
    engine._runs_behind = runs_behind
    reach = engine.scheduler.reach
    assert reach.num_groups == num_groups
    assert str(reach.num_held(engine.max_model_len)) in engine.memory.describe()
    prompt, answers, most = subject.prompts[-1], {"a": list[int]()}, [0] * num_groups
    engine.add("a", Prompt(prompt), GREEDY)
    while engine.has_work:
        _keep(engine.step(), answers)
        for group, table in enumerate(engine.scheduler.running[0].tables if engine.scheduler.running else []):
            most[group] = max(most[group], len(table) - table.count(0))
    assert answers["a"] == subject.answers[-1]
    whole = reach.num_blocks(len(prompt) + NUM_TOKENS - 1)
    for held, window in zip(most, reach.windows, strict=True):
        assert held >= whole - 1 if window is None else held <= (window + 8 * (1 + runs_behind)) // 4 + 2 < whole // 4


@pytest.mark.parametrize("block_size", [1, 4, 64])
def test_the_block_size_changes_no_token(case: Callable[[str], Case], block_size: int) -> None:
    subject = case("llama-3.1")
    llm = subject.llm(block_size=block_size, max_num_batched_tokens=50)
    assert subject.answer(llm) == subject.answers
    assert subject.answer(llm) == subject.answers


@pytest.mark.parametrize("family", MAIN)
def test_neighbours_that_come_and_go_change_no_token(case: Callable[[str], Case], family: str) -> None:
    subject = case(family)
    engine = subject.llm(max_num_batched_tokens=48).engine
    rng = random.Random(1)
    answers: dict[str, list[int]] = {str(i): [] for i in range(len(subject.prompts))}
    arrivals = list(enumerate(subject.prompts))
    neighbours: list[str] = []
    for step in _steps():
        if step % 3 == 0 and arrivals:
            i, prompt = arrivals.pop()
            engine.add(str(i), Prompt(prompt), GREEDY)
        if step % 5 == 0 and arrivals:
            neighbours.append(f"neighbour {step}")
            engine.add(neighbours[-1], Prompt([rng.randrange(200) for _ in range(rng.randint(1, 90))]), GREEDY)
        if step % 7 == 6 and neighbours:
            engine.abort(neighbours.pop(rng.randrange(len(neighbours))))
        _keep(engine.step(), answers)
        if not arrivals and not engine.has_work:
            break
    assert [answers[str(i)] for i in range(len(subject.prompts))] == subject.answers
    assert engine.pool.num_held == 0


@pytest.mark.parametrize("family", MAIN)
def test_logprobs_agree_with_transformers(case: Callable[[str], Case], family: str) -> None:
    subject = case(family)
    params = SamplingParams(
        temperature=0, max_tokens=8, ignore_eos=True, detokenize=False, logprobs=3, prompt_logprobs=2
    )
    prompts = [{"prompt_token_ids": ids} for ids in subject.prompts]
    outputs = subject.llm(max_num_batched_tokens=40).generate(prompts, params, use_tqdm=False)
    for prompt, output in zip(subject.prompts, outputs, strict=True):
        choice = output.outputs[0]
        with torch.inference_mode():
            logits = subject.peer(torch.tensor([prompt + choice.token_ids])).logits[0]
        expected = logits.log_softmax(-1)
        assert output.prompt_logprobs is not None
        assert output.prompt_logprobs[0] is None
        assert choice.logprobs is not None
        rows = [*output.prompt_logprobs[1:], *choice.logprobs]
        ids = [*prompt[1:], *choice.token_ids]
        for position, (row, token_id) in enumerate(zip(rows, ids, strict=True)):
            assert row is not None
            assert next(iter(row)) == token_id
            for named_id, named in row.items():
                assert named.logprob == pytest.approx(expected[position, named_id].item(), abs=1e-4)
            better = (expected[position] > expected[position, token_id] + 1e-5).sum().item()
            assert row[token_id].rank >= better + 1


def test_seeded_sampling_is_the_same_alone_and_in_a_crowd(case: Callable[[str], Case]) -> None:
    subject = case("llama-3.1")
    params = [
        SamplingParams(
            temperature=0.6 + 0.1 * i,
            top_k=(0, 20)[i % 2],
            top_p=(1.0, 0.9, 0.7)[i % 3],
            min_p=(0.0, 0.02)[i // 4],
            presence_penalty=0.5 * (i % 2),
            seed=i,
            max_tokens=40,
            ignore_eos=True,
            detokenize=False,
        )
        for i in range(len(subject.prompts))
    ]
    prompts = [{"prompt_token_ids": ids} for ids in subject.prompts]
    crowd = subject.llm(max_num_batched_tokens=31).generate(prompts, params, use_tqdm=False)
    alone = subject.llm()
    for i, output in enumerate(crowd):
        single = alone.generate([prompts[i]], params[i], use_tqdm=False)[0]
        assert output.outputs[0].token_ids == single.outputs[0].token_ids
    assert len({tuple(output.outputs[0].token_ids) for output in crowd}) == len(crowd)


@pytest.mark.parametrize("runs_behind", [False, True])
def test_a_failing_step_leaves_the_engine_whole(
    case: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch, runs_behind: bool
) -> None:
    subject = case("qwen3")
    llm = subject.llm(max_num_batched_tokens=64)
    llm.engine._runs_behind = runs_behind
    forward, calls = llm.engine.runner.forward, iter(range(10_000))

    def failing(*args: Any) -> Any:
        if next(calls) == 9:
            raise KeyboardInterrupt
        return forward(*args)

    monkeypatch.setattr(llm.engine.runner, "forward", failing)
    with pytest.raises(KeyboardInterrupt):
        subject.answer(llm)
    assert not llm.engine.has_work
    assert llm.engine.pool.num_held == 0
    assert subject.answer(llm) == subject.answers


def test_choices_differ_from_one_another_and_repeat_with_the_seed(case: Callable[[str], Case]) -> None:
    subject = case("qwen3")
    params = SamplingParams(n=4, temperature=1.0, seed=5, max_tokens=20, ignore_eos=True, detokenize=False)
    runs = []
    for budget in (256, 40):
        output = subject.llm(max_num_batched_tokens=budget).generate(
            {"prompt_token_ids": subject.prompts[6]}, params, use_tqdm=False
        )[0]
        runs.append([choice.token_ids for choice in output.outputs])
    assert runs[0] == runs[1]
    assert len({tuple(ids) for ids in runs[0]}) == 4


def _steps() -> Iterator[int]:
    yield from range(5_000)
    raise AssertionError("the engine did not finish")


def _keep(outputs: list[TokenOutput], answers: dict[str, list[int]]) -> None:
    for output in outputs:
        if output.request_id in answers:
            answers[output.request_id].append(output.token_id)
