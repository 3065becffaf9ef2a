"""With host memory behind a pool that is too small, answers are the same, and what was computed is not computed again.

On a machine with a GPU the copies run beside its steps.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from baton.engine.host_blocks import HostBlocks
from baton.engine.reload_cost import ReloadCost
from baton.engine.swap_space import SwapSpace
from baton.errors import ConfigError, OutOfMemory
from baton.llm import LLM, RequestOutput, SamplingParams

NUM_BLOCKS = 40
NUM_CONVERSATIONS = 10

Make = Callable[..., LLM]


@pytest.fixture(scope="module")
def small(tiny_checkpoint: Callable[[str], Path]) -> Make:
    folder = tiny_checkpoint("llama")
    settings = {"num_gpu_blocks_override": NUM_BLOCKS, "max_model_len": 256, "max_num_seqs": 4, "dtype": "float32"}

    def make(swap_space: object = 0.05, **given: object) -> LLM:
        llm = LLM(folder, skip_tokenizer_init=True, use_tqdm=False, swap_space=swap_space, **(settings | given))
        host = llm.engine.scheduler.host
        while host is not None and not host.tier.counts().num_slots:
            pass  # on a GPU its memory is pinned meanwhile
        return llm

    return make


@pytest.fixture(autouse=True)
def loads_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model this small computes as fast as memory copies."""
    monkeypatch.setattr(ReloadCost, "is_worth", lambda self, num_blocks, *_: num_blocks > 0)


def ask(llm: LLM, prompts: list[list[int]], num_tokens: int = 8, salt: str = "") -> list[RequestOutput]:
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": prompt, "cache_salt": salt} for prompt in prompts], params)
    llm.engine.pool.verify()
    assert llm.engine.pool.num_held == 0
    return outputs


def host_of(llm: LLM) -> HostBlocks:
    assert llm.engine.scheduler.host is not None
    return llm.engine.scheduler.host


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


@pytest.fixture(scope="module")
def talk(small: Make) -> SimpleNamespace:
    """Two turns of ten conversations, and what is answered to the second without any host memory."""
    llm = small(0, enable_prefix_caching=False)
    first = [[10 * conversation + at % 9 for at in range(88)] for conversation in range(1, NUM_CONVERSATIONS + 1)]
    answers = tokens(ask(llm, first))
    second = [[*prompt, *answer, *range(100, 110)] for prompt, answer in zip(first, answers, strict=True)]
    return SimpleNamespace(first=first, second=second, answers=tokens(ask(llm, second)))


def test_a_second_turn_is_found_in_host_memory(small: Make, talk: SimpleNamespace) -> None:
    llm = small()
    ask(llm, talk.first)
    outputs = ask(llm, talk.second)
    assert tokens(outputs) == talk.answers
    assert [output.num_cached_tokens for output in outputs] == [80] * NUM_CONVERSATIONS
    assert host_of(llm).num_restored_tokens >= 40 * NUM_CONVERSATIONS


def test_damaged_memory_is_computed_again(small: Make, talk: SimpleNamespace) -> None:
    llm = small()
    ask(llm, talk.first)
    host = host_of(llm)
    assert isinstance(host.tier, SwapSpace)
    copies: Any = host.tier._copies
    slots = copies._pinned.slots if llm.engine.runner.kv.is_cuda else copies._slots
    slots[::2, 1000] += 1
    outputs = ask(llm, talk.second)
    assert tokens(outputs) == talk.answers
    assert host.tier.counts().num_damaged > 0
    assert sum(output.num_cached_tokens for output in outputs) < 80 * NUM_CONVERSATIONS


def test_sequences_that_give_way_come_back(small: Make) -> None:
    prompts = [[conversation, *range(20)] for conversation in range(6)]
    roomy, tight = small(0, num_gpu_blocks_override=200), small(num_gpu_blocks_override=17, max_num_seqs=6)
    outputs = ask(tight, prompts, 100)
    assert tokens(outputs) == tokens(ask(roomy, prompts, 100))
    assert tight.engine.scheduler.num_preemptions > 2
    assert host_of(tight).num_restored_tokens > 100
    assert all(output.num_cached_tokens <= len(output.prompt_token_ids) for output in outputs)


@pytest.mark.parametrize(("family", "num_blocks"), [("gemma2", 72), ("mistral", 20)])
def test_layers_that_see_a_window_have_theirs_back(
    tiny_checkpoint: Callable[[str], Path], family: str, num_blocks: int
) -> None:
    settings: dict[str, Any] = {
        "num_gpu_blocks_override": num_blocks,
        "max_model_len": 256,
        "max_num_batched_tokens": 128,
    }
    tight, plain = (
        LLM(
            tiny_checkpoint(family),
            skip_tokenizer_init=True,
            use_tqdm=False,
            dtype="float32",
            max_num_seqs=4,
            swap_space=space,
            **settings,
        )
        for space in (0.05, 0)
    )
    first = [[10 * conversation + at % 9 for at in range(152)] for conversation in range(1, 9)]
    turns = [[*prompt, *answer, 100, 101] for prompt, answer in zip(first, tokens(ask(tight, first)), strict=True)]
    assert tokens(ask(tight, turns)) == tokens(ask(plain, turns))
    assert host_of(tight).num_restored_tokens > 4 * 100


def test_other_salts_find_nothing(small: Make, talk: SimpleNamespace) -> None:
    llm = small()
    ask(llm, talk.first)
    outputs = ask(llm, talk.second, salt="other")
    assert [output.num_cached_tokens for output in outputs] == [0] * NUM_CONVERSATIONS
    assert tokens(outputs) == talk.answers


def test_without_prefix_caching_there_is_none(small: Make) -> None:
    assert small(enable_prefix_caching=False).engine.scheduler.host is None


def test_too_much_is_refused(small: Make) -> None:
    with pytest.raises(OutOfMemory, match="--swap-space"):
        small(100_000)
    for wrong in (-1, True, "4", float("nan")):
        with pytest.raises(ConfigError, match="swap_space"):
            small(wrong)
