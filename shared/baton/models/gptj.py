"""GPT-J: attention and feed-forward side by side behind one LayerNorm; neighbours among the first dimensions of a head turn."""

from __future__ import annotations

from baton.models.blocks import BlockDecoder, Blocks
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import PLAIN, read_attention, read_mlp, read_rotary
from baton.models.names import Names
from baton.models.spec import ModelSpec

NAMES = Names(
    embedding="wte",
    layers="h",
    attention_norm="ln_1",
    qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    out="attn.out_proj",
    up=("mlp.fc_in",),
    down="mlp.fc_out",
    final_norm="ln_f",
)


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    fields = fields.known_as(
        hidden_size="n_embd",
        num_attention_heads="n_head",
        num_hidden_layers="n_layer",
        max_position_embeddings="n_positions",
        intermediate_size="n_inner",
        hidden_act="activation_function",
        rms_norm_eps="layer_norm_epsilon",
    )
    fields = fields.with_defaults(intermediate_size=4 * fields.integer("hidden_size"), rotary_dim=64)
    return read_rotary(
        fields,
        read_attention(fields, kv_heads_named=False, interleaved=True),
        read_mlp(fields, PLAIN, default="gelu_new", gated=False, bias=True),
        eps=1e-5,
        norm="layer",
        own=Blocks(NAMES, parallel=True, shared_norm=True, output_bias=True),
    )


FAMILY = Family("gptj", ("GPTJForCausalLM",), read, BlockDecoder, eos=50256)
