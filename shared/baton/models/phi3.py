"""Phi-3 and Phi-4-mini: Llama with LongRoPE, whose checkpoints have q, k, v and gate, up already fused."""

from __future__ import annotations

from dataclasses import replace

from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import read_attention, read_mlp, read_rotary, read_window
from baton.models.llama import Llama
from baton.models.names import LLAMA
from baton.models.spec import ModelSpec


class Phi3(Llama):
    """A decoder of the Phi-3 kind."""

    NAMES = replace(LLAMA, qkv=("self_attn.qkv_proj",) * 3, up=("mlp.gate_up_proj",) * 2)


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    # What Phi-3 called LongRoPE before transformers settled on the name.
    attention = read_attention(fields, kv_heads_named=False, rope_names={"su": "longrope", "yarn": "longrope"})
    return read_rotary(fields, replace(attention, window=read_window(fields, None)), read_mlp(fields), eps=1e-5)


FAMILY = Family(
    "phi3",
    ("Phi3ForCausalLM",),
    read,
    Phi3,
    eos=32000,
    # Microsoft published Phi-3 before transformers had it.
    harmless_code=frozenset({"configuration_phi3.Phi3Config", "modeling_phi3.Phi3ForCausalLM"}),
)
