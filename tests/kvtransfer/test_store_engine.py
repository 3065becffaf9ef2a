"""Two engines over one store: what the one has computed the other goes on from, with the same answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.kvtransfer.blocks import wait_until
from tests.kvtransfer.live_store import LiveStore

from baton.engine.reload_cost import ReloadCost
from baton.engine.slot_copies import slot_copies
from baton.kvtransfer.store.link import StoreLink
from baton.kvtransfer.store.tier import StoreTier
from baton.kvtransfer.wire import layout_fingerprint
from baton.llm import LLM, SamplingParams

PARAMS = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, detokenize=False)


def make(folder: Path) -> LLM:
    return LLM(
        folder,
        skip_tokenizer_init=True,
        use_tqdm=False,
        device="cpu",
        dtype="float32",
        max_model_len=256,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        num_gpu_blocks_override=80,
    )


def share(llm: LLM, parts: LiveStore) -> StoreTier:
    engine = llm.engine
    nbytes = engine.memory.block_nbytes
    layout = layout_fingerprint(nbytes, *engine.cache_parts, "cpu")
    link = StoreLink(parts.path, layout, nbytes, "key", lambda: None)
    tier = StoreTier(link, lambda memory, _num_slots: slot_copies(lambda: engine.runner.kv, memory))
    parts.tiers.append(tier)
    engine.use_tier(tier)
    wait_until(lambda: tier.has_stock, tier.hear)
    return tier


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_another_engine_goes_on_from_what_one_has_computed(
    tiny_checkpoint: Callable[[str], Path], parts: LiveStore, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReloadCost, "is_worth", lambda self, num_blocks, *_: num_blocks > 0)
    one, other, plain = (make(tiny_checkpoint(family)) for _ in range(3))
    tier, other_tier = share(one, parts), share(other, parts)
    prompt = [5 + at % 9 for at in range(90)]

    def answer(llm: LLM, token_ids: list[int]) -> list[int]:
        (output,) = llm.generate([{"prompt_token_ids": token_ids}], PARAMS)
        llm.engine.pool.verify()
        return list(output.outputs[0].token_ids)

    first = answer(one, prompt)
    num_stored = (len(prompt) + len(first) - 1) // 16
    wait_until(lambda: tier.counts().num_saved >= num_stored, tier.hear)
    wait_until(lambda: other_tier.counts().num_used >= num_stored, other_tier.hear)
    turn = [*prompt, *first, 100, 101]
    assert answer(other, turn) == answer(plain, turn)
    assert other.engine.scheduler.host is not None
    assert other.engine.scheduler.host.num_restored_tokens == num_stored * 16
    wait_until(lambda: parts.thread.store.num_loans == 0)
