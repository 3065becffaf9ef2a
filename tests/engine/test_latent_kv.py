"""Latent attention keeps one vector a token: what its blocks take, and that they travel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.models.test_deepseek import DEEPSEEK_V3
from tests.worker.table_top import TableTop, turn_until

from baton.config import EngineConfig
from baton.engine import device
from baton.engine.device import DeviceFacts, prepare_kernels
from baton.engine.kv_cache import KVCacheSpec
from baton.errors import ConfigError
from baton.models.config import make_spec, read_spec
from baton.protocol import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, detokenize=False)


def test_a_block_holds_one_vector_a_token_and_layer() -> None:
    kv = KVCacheSpec.of(make_spec(DEEPSEEK_V3), 16, torch.bfloat16, 4096)
    assert [(len(group.layers), group.kind) for group in kv.groups] == [(61, "latent")]
    assert kv.block_nbytes == 16 * 576 * 2 * 61
    assert kv.describe() == "block-major 61x1x16x1x576 bfloat16"


def test_what_prefill_sends_to_decode_is_latents_and_changes_no_token(tiny_checkpoint: Callable[[str], Path]) -> None:
    prefill, decode = tables = [TableTop(tiny_checkpoint("deepseek-v3"), 64) for _ in range(2)]
    prompt = [3 + at * 7 % 200 for at in range(100)]
    try:
        request_id = "cd" * 16
        ticket = prefill.ticket(request_id, prompt)
        decode.start(prompt, GREEDY, request_id=request_id, ticket=ticket)
        prefill.start(prompt, GREEDY, leg="prefill", request_id=request_id, ticket=ticket)
        turn_until(tables, lambda: len(decode.ids(request_id)) == 19, "the answer is whole")
        assert decode.importer.stats.bytes_received == 7 * 16 * (24 + 8) * 4 * 2  # 7 blocks of 2 layers
        again = prefill.start(prompt, GREEDY)
        turn_until([prefill], lambda: len(prefill.ids(again)) == 20, "the answer is whole")
        assert prefill.ids(request_id) + decode.ids(request_id) == prefill.ids(again)
    finally:
        for table in tables:
            table.close()


def test_bits_that_depend_on_the_batch_are_not_called_deterministic(
    tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_checkpoint("deepseek-v3")
    monkeypatch.setattr(device, "facts_of", lambda _: DeviceFacts("NVIDIA H200", True, (9, 0), "3.6.0"))
    config = EngineConfig(model=str(folder), deterministic=True)
    with pytest.raises(ConfigError, match="deterministic=True is not valid for deepseek_v3"):
        prepare_kernels(config, read_spec(folder), torch.bfloat16, 256, torch.device("cpu"))
