"""The table of rotations is the one that transformers computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Phi3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from baton.models.config import make_spec
from baton.models.rope import rope_table

SHAPE: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 500000.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
    {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 1024},
    {
        "rope_type": "yarn",
        "rope_theta": 1000000.0,
        "factor": 40.0,
        "original_max_position_embeddings": 512,
        "beta_fast": 16,
        "beta_slow": 2,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
        "truncate": False,
    },
    {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 2.0,
        "original_max_position_embeddings": 2048,
        "attention_factor": 1.3,
    },
]
FACTORS = {"short_factor": [1 + 0.01 * i for i in range(24)], "long_factor": [1 + 0.9 * i for i in range(24)]}


def expected(embedding: Any, num_positions: int) -> torch.Tensor:
    positions = torch.arange(num_positions)[None]
    cos, sin = embedding(torch.zeros(1), positions)
    half = cos.shape[-1] // 2
    return torch.stack((cos[0, :, :half], sin[0, :, :half]), dim=1)


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: str(rope["rope_type"]))
def test_each_kind_is_the_table_of_transformers(rope: dict[str, Any]) -> None:
    config = LlamaConfig(**SHAPE, rope_parameters=dict(rope))
    spec = make_spec({"model_type": "llama", **SHAPE, "rope_parameters": rope})
    table = rope_table(spec.ropes[0], 4096, torch.device("cpu"))
    assert torch.equal(table, expected(LlamaRotaryEmbedding(config), 4096))


@pytest.mark.parametrize("max_positions", [1024, 1025])
def test_longrope_chooses_factors_by_the_longest_context(max_positions: int) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75, **FACTORS}
    config = Phi3Config(**SHAPE, original_max_position_embeddings=1024, rope_parameters=dict(rope), pad_token_id=0)
    old = {"rope_scaling": {"type": "su", **FACTORS}, "rope_theta": 10000.0, "partial_rotary_factor": 0.75}
    spec = make_spec({"model_type": "phi3", **SHAPE, "original_max_position_embeddings": 1024, **old})
    table = rope_table(spec.ropes[0], max_positions, torch.device("cpu"))  # [positions, 2, 24]: 48 of 64 are rotated
    assert torch.equal(table, expected(Phi3RotaryEmbedding(config), max_positions))
