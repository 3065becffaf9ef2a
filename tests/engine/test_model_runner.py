"""A step is computed, then sampled: what may come between the two, and several samples a row."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from baton.engine.engine import Engine
from baton.engine.model_runner import ForwardedStep, LaunchedStep
from baton.llm import LLM, SamplingParams
from baton.prompt import Prompt

PROMPT = [3, 14, 15, 92, 65, 35, 89]


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Callable[[str], Path]) -> Engine:
    settings: dict[str, Any] = {"kv_cache_memory_bytes": 2**20, "max_num_seqs": 8, "dtype": "float32"}
    return LLM(tiny_checkpoint("qwen3"), skip_tokenizer_init=True, use_tqdm=False, **settings).engine


def answer(engine: Engine, prompt: list[int], params: SamplingParams) -> list[int]:
    engine.add("a", Prompt(prompt), params)
    tokens: list[int] = []
    while engine.has_work:
        tokens += [output.token_id for output in engine.step()]
    return tokens


def packed(allowed: list[list[int]], vocab_size: int) -> Tensor:
    """Pack each row's allowed tokens, 32 in a word."""
    bits = np.zeros((len(allowed), -(-vocab_size // 32) * 32), dtype=np.uint8)
    for row, token_ids in zip(bits, allowed, strict=True):
        row[token_ids] = 1
    return torch.from_numpy(np.packbits(bits, axis=1, bitorder="little").view(np.int32).copy())


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0, logprobs=2),
        SamplingParams(temperature=1.5, seed=1),
        SamplingParams(temperature=0.7, top_p=0.9, repetition_penalty=1.2, logit_bias={5: 50.0}, seed=2),
    ],
    ids=["greedy", "drawn", "filtered"],
)
def test_a_masked_token_is_never_drawn(engine: Engine, monkeypatch: pytest.MonkeyPatch, params: SamplingParams) -> None:
    rng, vocab_size, sample = random.Random(4), engine.model.spec.vocab_size, engine.runner.sample
    allowed: list[list[int]] = []

    def masked(step: ForwardedStep, masks: Tensor | None, edits: object) -> LaunchedStep:
        rows = [rng.sample(range(vocab_size), 3) for _ in step.batch.sampled]
        allowed.extend(rows)
        return sample(step, packed(rows, vocab_size).to(engine.runner.device))

    monkeypatch.setattr(engine.runner, "sample", masked)
    tokens = answer(engine, PROMPT, params.replace(max_tokens=40, ignore_eos=True, detokenize=False))
    assert len(tokens) == len(allowed) == 40
    assert all(token_id in row for token_id, row in zip(tokens, allowed, strict=True))


def test_a_mask_of_all_tokens_changes_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(temperature=1, seed=3, max_tokens=20, ignore_eos=True, detokenize=False)
    expected, sample = answer(engine, PROMPT, params), engine.runner.sample
    mask = torch.full((1, -(-engine.model.spec.vocab_size // 32)), -1, dtype=torch.int32, device=engine.runner.device)
    monkeypatch.setattr(engine.runner, "sample", lambda step, masks, edits: sample(step, mask))
    assert answer(engine, PROMPT, params) == expected


def test_a_row_with_several_samples_gets_what_as_many_steps_would_draw(engine: Engine) -> None:
    params = SamplingParams(temperature=1, seed=3, max_tokens=5, ignore_eos=True, detokenize=False, logprobs=1)
    expected = answer(engine, PROMPT, params)
    engine.add("b", Prompt(PROMPT + expected), params)
    engine.add("c", Prompt(PROMPT), params.replace(temperature=0))
    engine.add("d", Prompt(PROMPT), params)
    plan = engine.scheduler.plan()
    assert plan is not None
    plan.num_samples[0] = 6
    result = engine.runner.collect(engine.runner.sample(engine.runner.forward(plan)))
    first, *_ = result.token_lists
    assert [len(row) for row in result.token_lists] == [len(rows) for rows in result.logprobs] == [6, 1, 1]
    assert first[:5] == expected == [rows.token_ids[0] for rows in result.logprobs[0] if rows][:5]
    assert result.token_lists[2] == expected[:1]
    engine.scheduler.discard()
    for request_id in ("b", "c", "d"):
        engine.abort(request_id)
    assert engine.pool.num_held == 0


def test_blocks_of_a_failed_step_come_back_when_the_device_is_done(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []

    def fail(step: ForwardedStep, masks: Tensor | None, edits: object) -> LaunchedStep:
        raise RuntimeError("the device said no")

    monkeypatch.setattr(engine.runner, "sample", fail)
    monkeypatch.setattr(engine.runner, "wait", lambda: held.append(engine.pool.num_held))
    engine.add("a", Prompt(PROMPT), SamplingParams(max_tokens=3))
    with pytest.raises(RuntimeError, match="said no"):
        engine.step()
    assert engine.discard() == ["a"]
    assert (held, engine.pool.num_held) == ([1], 0)
    engine.abort("a")
