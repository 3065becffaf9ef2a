"""What an operator puts over config.json holds wherever the model is read, and makes KV of another name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from baton.config import EngineConfig
from baton.errors import ConfigError
from baton.llm import LLM
from baton.model_config import with_overrides
from baton.models.config import read_spec
from baton.models.identity import model_identity

YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256}


@pytest.mark.parametrize(
    ("config", "overrides", "becomes"),
    [
        ({"a": 1, "b": 2}, {"b": 3, "c": 4}, {"a": 1, "b": 3, "c": 4}),
        ({"text_config": {"a": 1, "b": 2}}, {"text_config": {"b": 3}}, {"text_config": {"a": 1, "b": 3}}),
        ({"quantization_config": {"bits": 4}}, {"quantization_config": None}, {"quantization_config": None}),
        ({"rope_scaling": None}, {"rope_scaling": YARN}, {"rope_scaling": YARN}),
    ],
)
def test_values_are_put_over_those_of_the_file(config, overrides, becomes) -> None:
    before = json.dumps(config)
    assert with_overrides(config, overrides) == becomes
    assert json.dumps(config) == before


def test_either_name_of_rotary_positions_overrides_the_other() -> None:
    config = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert with_overrides(config, {"rope_scaling": YARN})["rope_parameters"] == {"rope_theta": 5e5, **YARN}
    assert with_overrides(config, {"rope_theta": 1e6})["rope_parameters"]["rope_theta"] == 1e6


def test_a_longer_context_is_served_where_rope_is_scaled(tiny_checkpoint: Callable[[str], Path]) -> None:
    folder = tiny_checkpoint("llama")
    assert read_spec(folder).max_model_len == 256
    llm = LLM(
        str(folder),
        skip_tokenizer_init=True,
        device="cpu",
        hf_overrides={"rope_scaling": YARN},
        kv_cache_memory_bytes=2**22,
        use_tqdm=False,
    )
    assert llm.engine.max_model_len == 512
    assert model_identity(folder) != model_identity(folder, overrides=llm.config.overrides)


@pytest.mark.parametrize("given", ["{", "[1]", "4"])
def test_what_is_no_object_is_refused_at_start(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"hf_overrides='.*' is not valid"):
        EngineConfig(hf_overrides=given)
