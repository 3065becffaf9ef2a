"""GPT-NeoX and Pythia: LayerNorm, attention and feed-forward side by side, a quarter of each head turns, biases."""

from __future__ import annotations

from baton.models.blocks import BlockDecoder, Blocks
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import PLAIN, read_attention, read_mlp, read_rotary
from baton.models.names import Names
from baton.models.spec import ModelSpec

NAMES = Names(
    embedding="embed_in",
    qkv=("attention.query_key_value",) * 3,
    by_head=True,
    out="attention.dense",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    final_norm="final_layer_norm",
    output="embed_out",
)


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    fields = fields.known_as(
        rms_norm_eps="layer_norm_eps", partial_rotary_factor="rotary_pct", rope_theta="rotary_emb_base"
    ).with_defaults(partial_rotary_factor=0.25)
    return read_rotary(
        fields,
        read_attention(fields, kv_heads_named=False, bias=fields.flag("attention_bias", True)),
        read_mlp(fields, PLAIN, gated=False, bias=True),
        eps=1e-5,
        norm="layer",
        own=Blocks(NAMES, parallel=fields.flag("use_parallel_residual", True)),
    )


FAMILY = Family("gpt_neox", ("GPTNeoXForCausalLM",), read, BlockDecoder, eos=2)
