"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values, and windows in the upper layers where asked for."""

from __future__ import annotations

from dataclasses import replace

from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import read_attention, read_mlp, read_rotary, read_windows
from baton.models.llama import Llama
from baton.models.spec import ModelSpec


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    fields.must_be_off("use_mrope")
    attention = replace(read_attention(fields), qkv_bias=True)
    return read_rotary(fields, attention, read_mlp(fields), upper_windows(fields))


def upper_windows(fields: Fields) -> tuple[int | None, ...] | None:
    """Read each layer's window: from max_window_layers up, if at all."""
    if not fields.flag("use_sliding_window", False):
        return None
    first = fields.integer("max_window_layers", default=28, minimum=0)
    return read_windows(fields, lambda layer: layer >= first)


FAMILY = Family("qwen2", ("Qwen2ForCausalLM",), read, Llama)
