"""Mistral: Llama with a window in every layer."""

from __future__ import annotations

from dataclasses import replace

from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import read_attention, read_mlp, read_rotary, read_window
from baton.models.llama import Llama
from baton.models.spec import ModelSpec


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    return read_rotary(fields, replace(read_attention(fields), window=read_window(fields)), read_mlp(fields))


FAMILY = Family("mistral", ("MistralForCausalLM",), read, Llama, eos=2)
