"""What fits a device: how long a context may be where it is to be as long as the memory holds."""

from __future__ import annotations

import pytest
import torch

from baton.config import AUTO_LEN, EngineConfig, demo_model_path
from baton.engine.kv_cache import KVCacheSpec
from baton.engine.memory import plan_memory, with_kv_of
from baton.errors import OutOfMemory
from baton.models.config import read_spec

CPU = torch.device("cpu")
CONTEXT = 4096


def kv_spec() -> KVCacheSpec:
    return KVCacheSpec.of(read_spec(demo_model_path()), 16, torch.float32, CONTEXT)


@pytest.mark.parametrize(("num_blocks", "context"), [(8, 128), (1, 16), (63, 960), (256, CONTEXT), (1000, CONTEXT)])
def test_an_automatic_context_is_no_longer_than_the_blocks_or_the_model(num_blocks: int, context: int) -> None:
    config = EngineConfig(max_model_len=AUTO_LEN, num_gpu_blocks_override=num_blocks)
    plan = plan_memory(config, kv_spec(), weights_nbytes=0, max_model_len=CONTEXT, device=CPU)
    assert plan.max_model_len == context
    # measured again, once the weights are there
    assert with_kv_of(config, plan, 0, 0, CPU).max_model_len == context


def test_equal_devices_agree_on_a_context_though_one_has_some_blocks_more() -> None:
    contexts = set()
    for num_blocks in range(160, 164):
        config = EngineConfig(max_model_len=AUTO_LEN, num_gpu_blocks_override=num_blocks)
        plan = plan_memory(config, kv_spec(), weights_nbytes=0, max_model_len=CONTEXT, device=CPU)
        contexts.add(plan.max_model_len)
    assert contexts == {2560}


def test_a_context_that_was_asked_for_is_never_shortened() -> None:
    config = EngineConfig(max_model_len=256, num_gpu_blocks_override=8)
    with pytest.raises(OutOfMemory, match="max_model_len=256"):
        plan_memory(config, kv_spec(), weights_nbytes=0, max_model_len=256, device=CPU)


def test_what_a_step_takes_shortens_an_automatic_context_too() -> None:
    spec = kv_spec()
    config = EngineConfig(max_model_len=AUTO_LEN, kv_cache_memory_bytes=64 * spec.block_nbytes)
    plan = plan_memory(config, spec, weights_nbytes=0, max_model_len=CONTEXT, device=CPU)
    assert plan.max_model_len == 960
    with pytest.raises(OutOfMemory, match="a step of 8192 tokens takes"):
        with_kv_of(config, plan, 0, 2**62, CPU)
