"""--deterministic: an answer's log-probabilities are the same bits whatever the engine computes beside it, and how.

On a machine with a GPU the model is wide and the prompts are long, so that libraries choose by the number of rows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from baton.llm import LLM, RequestOutput, SamplingParams

HAS_GPU = torch.cuda.is_available()
WIDE = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 20_000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "initializer_range": 0.05,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LENS = (2000, 1, 700, 1300, 16, 64, 65, 300) if HAS_GPU else (150, 1, 16, 17, 40, 100, 64, 65)
RNG = random.Random(3)
PROMPTS = [{"prompt_token_ids": [RNG.randrange(3, 200) for _ in range(n)]} for n in LENS]
NUM_TOKENS = 24
# The next two differ in nothing but whether they draw; scores of prompts come with them.
GREEDY = SamplingParams(
    temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, detokenize=False, logprobs=2, prompt_logprobs=1
)
DRAWN = SamplingParams(temperature=1.0, seed=5, max_tokens=NUM_TOKENS, ignore_eos=True, detokenize=False, logprobs=2)
FAMILIES = ("wide",) if HAS_GPU else ("llama-3.1", "gemma2", "gpt2")


@pytest.fixture(scope="module", params=FAMILIES)
def make_llm(
    request: pytest.FixtureRequest, tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., LLM]:
    if request.param == "wide":
        folder = tmp_path_factory.mktemp("wide")
        (folder / "config.json").write_text(json.dumps(WIDE))
        given: dict[str, Any] = {"load_format": "dummy", "max_model_len": 2100}
    else:
        folder, given = tiny_checkpoint(request.param), {"max_model_len": 256}
    given |= {"num_gpu_blocks_override": 400, "max_num_seqs": 8, "deterministic": True}

    def make(**settings: Any) -> LLM:
        return LLM(folder, skip_tokenizer_init=True, use_tqdm=False, **{**given, **settings})

    return make


@pytest.fixture(scope="module")
def alone(make_llm: Callable[..., LLM]) -> dict[bool, list[Any]]:
    """Give the bits of each prompt's answer, computed alone and in one chunk: drawn (True) and greedy."""
    llm = make_llm(enable_prefix_caching=False)
    return {
        params is DRAWN: [_bits(llm.generate([prompt], params, use_tqdm=False)[0]) for prompt in PROMPTS]
        for params in (GREEDY, DRAWN)
    }


def _bits(output: RequestOutput) -> Any:
    """Give tokens and log-probabilities as they are: equal only if every bit is."""
    choice = output.outputs[0]
    assert choice.logprobs is not None
    rows = [*(output.prompt_logprobs or []), *choice.logprobs]
    scores = [None if row is None else [(i, named.logprob) for i, named in row.items()] for row in rows]
    return choice.token_ids, scores


def _run(llm: LLM, params: SamplingParams) -> list[Any]:
    return [_bits(output) for output in llm.generate(PROMPTS, params, use_tqdm=False)]


# A CPU computes chunks of 100 tokens in the next test.
@pytest.mark.parametrize("budget", [16, 64, *([256] if HAS_GPU else []), 8192])
def test_neighbours_and_chunks_change_no_bit(
    make_llm: Callable[..., LLM], alone: dict[bool, list[Any]], budget: int
) -> None:
    llm = make_llm(max_num_batched_tokens=budget)
    assert _run(llm, GREEDY) == alone[False]
    assert _run(llm, DRAWN) == alone[True]


def test_a_cached_prefix_changes_no_bit(make_llm: Callable[..., LLM], alone: dict[bool, list[Any]]) -> None:
    llm = make_llm(max_num_batched_tokens=100)
    assert _run(llm, DRAWN) == alone[True]
    outputs = llm.generate(PROMPTS, DRAWN, use_tqdm=False)
    assert [output.num_cached_tokens for output in outputs] == [(n - 1) // 16 * 16 for n in LENS]
    assert [_bits(output) for output in outputs] == alone[True]


def test_preemption_changes_no_bit(make_llm: Callable[..., LLM], alone: dict[bool, list[Any]]) -> None:
    settings = {"max_model_len": -(-(max(LENS) + NUM_TOKENS) // 16) * 16, "max_num_batched_tokens": 16}
    longest = make_llm(**settings).engine.memory.reach.num_held(settings["max_model_len"])
    llm = make_llm(**settings, num_gpu_blocks_override=longest, enable_prefix_caching=False)
    assert _run(llm, DRAWN) == alone[True]
    assert llm.engine.scheduler.num_preemptions > 0


@pytest.mark.skipif(not HAS_GPU, reason="a CPU has no graphs")
def test_captured_steps_change_no_bit(make_llm: Callable[..., LLM], alone: dict[bool, list[Any]]) -> None:
    assert _run(make_llm(enforce_eager=True), DRAWN) == alone[True]
    assert _run(make_llm(enforce_eager=False), DRAWN) == alone[True]


def test_kv_of_another_mode_is_not_shared(make_llm: Callable[..., LLM]) -> None:
    assert make_llm().engine.cache_parts != make_llm(deterministic=False).engine.cache_parts
