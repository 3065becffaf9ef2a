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
    bias = fields.flag("attention_bias", False)
    attention = replace(read_attention(fields, head_dim=128), qkv_bias=bias, out_bias=bias, qk_norm=True)
    return read_rotary(fields, attention, read_mlp(fields), upper_windows(fields))


FAMILY = Family("qwen3", ("Qwen3ForCausalLM",), read, Llama)
