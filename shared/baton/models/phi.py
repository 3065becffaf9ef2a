"""Phi-1, 1.5 and 2: attention and feed-forward side by side behind one LayerNorm, half of each head turns, biases everywhere."""

from __future__ import annotations

from dataclasses import replace

from baton.models.blocks import BlockDecoder, Blocks
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import PLAIN, read_attention, read_mlp, read_rotary
from baton.models.names import LLAMA
from baton.models.spec import ModelSpec

NAMES = replace(LLAMA, out="self_attn.dense", up=("mlp.fc1",), down="mlp.fc2", final_norm="final_layernorm")


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    fields.must_be_off("qk_layernorm")
    fields = fields.known_as(rms_norm_eps="layer_norm_eps").with_defaults(partial_rotary_factor=0.5)
    return read_rotary(
        fields,
        read_attention(fields, kv_heads_named=False, bias=True),
        read_mlp(fields, PLAIN, default="gelu_new", gated=False, bias=True),
        eps=1e-5,
        norm="layer",
        own=Blocks(NAMES, parallel=True, shared_norm=True, output_bias=True),
    )


FAMILY = Family(
    "phi",
    ("PhiForCausalLM",),
    read,
    BlockDecoder,
    eos=2,
    # Microsoft published Phi before transformers had it.
    harmless_code=frozenset({"configuration_phi.PhiConfig", "modeling_phi.PhiForCausalLM"}),
)
