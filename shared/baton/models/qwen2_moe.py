"""Qwen2-MoE (Qwen1.5-MoE too): Qwen2 with a mixture of experts, and an expert that all tokens share, weighed by a gate."""

from __future__ import annotations

from dataclasses import replace

from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import read_attention, read_mlp, read_rotary, read_windows
from baton.models.qwen3_moe import Qwen3MoE, read_experts, with_experts
from baton.models.spec import ModelSpec


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    attention = replace(read_attention(fields), qkv_bias=fields.flag("qkv_bias", True))
    windows = None
    if fields.flag("use_sliding_window", False):
        first = fields.integer("max_window_layers", default=28, minimum=0)
        windows = read_windows(fields, lambda layer: layer % 2 == 0 and layer < first)
    mlp = read_mlp(fields)
    shared = replace(mlp, size=fields.integer("shared_expert_intermediate_size"))
    experts = read_experts(fields, shared=shared, shared_gate=True)
    return with_experts(fields, read_rotary(fields, attention, mlp, windows), experts)


FAMILY = Family("qwen2_moe", ("Qwen2MoeForCausalLM",), read, Qwen3MoE)
