"""GLM-4 and Z1: Llama that turns half of each head, by pairs of neighbours; the models of 2025 normalize after blocks too."""

from __future__ import annotations

from dataclasses import replace

from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import read_attention, read_mlp, read_rotary
from baton.models.llama import Llama
from baton.models.names import LLAMA
from baton.models.sandwich import Sandwich
from baton.models.spec import ModelSpec

NAMES = replace(LLAMA, up=("mlp.gate_up_proj",) * 2)


class Glm(Llama):
    """A decoder of the kind of glm-4-9b."""

    NAMES = NAMES


class Glm4(Sandwich):
    """A decoder of the kind of GLM-4-0414."""

    NAMES = NAMES
    NORMS = ("post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm")


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    fields = fields.with_defaults(partial_rotary_factor=0.5)
    attention = read_attention(fields, head_dim=128, bias=fields.flag("attention_bias", True), interleaved=True)
    return read_rotary(fields, replace(attention, out_bias=False), read_mlp(fields), eps=1.5625e-7)


FAMILY = Family("glm", ("GlmForCausalLM",), read, Glm, eos=151329)
GLM4_FAMILY = Family("glm4", ("Glm4ForCausalLM",), read, Glm4, eos=151329)
