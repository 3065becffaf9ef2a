"""Granite: Llama whose embeddings, residual additions, attention and logits are scaled."""

from __future__ import annotations

from dataclasses import replace

from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import read_attention, read_mlp, read_rotary
from baton.models.llama import Llama
from baton.models.spec import ModelSpec


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    attention = read_attention(fields, kv_heads_named=False, bias=fields.flag("attention_bias", False))
    return read_rotary(
        fields,
        replace(attention, scale=fields.number("attention_multiplier", 1.0)),
        read_mlp(fields, bias=fields.flag("mlp_bias", False)),
        embedding_scale=fields.number("embedding_multiplier", 1.0),
        residual_scale=fields.number("residual_multiplier", 1.0),
        logit_scale=1.0 / fields.number("logits_scaling", 1.0),
    )


FAMILY = Family("granite", ("GraniteForCausalLM",), read, Llama, eos=2)
