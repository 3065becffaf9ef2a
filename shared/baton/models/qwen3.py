"""Qwen3: Llama with RMSNorm on each head's query and key."""

from __future__ import annotations

from dataclasses import replace

from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import read_attention, read_mlp, read_rotary
from baton.models.llama import Llama
from baton.models.qwen2 import upper_windows
from baton.models.spec import ModelSpec


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    attention = read_attention(fields, head_dim=128, bias=fields.flag("attention_bias", False))
    return read_rotary(fields, replace(attention, qk_norm="head"), read_mlp(fields), upper_windows(fields))


FAMILY = Family("qwen3", ("Qwen3ForCausalLM",), read, Llama)
