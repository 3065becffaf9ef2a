"""Every way to load that vLLM names is taken, or refused with what stands for it."""

from __future__ import annotations

import pytest

from baton.config import EngineConfig
from baton.errors import ConfigError
from baton.load_formats import LOAD_FORMATS

VLLM = (
    *("auto", "pt", "safetensors", "npcache", "dummy", "tensorizer", "runai_streamer", "runai_streamer_sharded"),
    *("bitsandbytes", "sharded_state", "gguf", "mistral", "fastsafetensors", "hf", "instanttensor", "modelexpress"),
)


@pytest.mark.parametrize("name", VLLM)
def test_a_name_of_vllm_is_taken_or_refused_with_the_way_out(name: str) -> None:
    if name in LOAD_FORMATS:
        assert EngineConfig(load_format=name).load_format == name
        return
    with pytest.raises(
        ConfigError, match=rf"load_format='{name}' is not served: .*Give one of auto, safetensors, dummy"
    ):
        EngineConfig(load_format=name)


def test_another_name_is_not_known() -> None:
    with pytest.raises(ConfigError, match="load_format='fast' is not known"):
        EngineConfig(load_format="fast")
