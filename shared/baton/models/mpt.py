"""MPT: no positions but slopes that lower attention with distance (ALiBi), LayerNorm without bias before each block, no biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from baton.models.blocks import BlockDecoder, Blocks
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import plain_attention, read_decoder
from baton.models.names import Names
from baton.models.slopes import slopes_of
from baton.models.spec import AttentionSpec, MLPSpec, ModelSpec

NAMES = Names(
    embedding="wte",
    layers="blocks",
    attention_norm="norm_1",
    qkv=("attn.Wqkv",) * 3,
    out="attn.out_proj",
    mlp_norm="norm_2",
    up=("ffn.up_proj",),
    down="ffn.down_proj",
    final_norm="norm_f",
)


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    fields.must_be_off("logit_scale")
    if not fields.flag("no_bias", True):
        raise fields.refusal("no_bias", False, "Baton runs this family without biases")
    fields = fields.known_as(
        hidden_size="d_model",
        num_attention_heads="n_heads",
        num_hidden_layers="n_layers",
        rms_norm_eps="layer_norm_epsilon",
    )
    hidden_size = fields.integer("hidden_size")
    return read_decoder(
        fields,
        (_read_attention(fields, hidden_size),) * fields.integer("num_hidden_layers"),
        MLPSpec(fields.integer("expansion_ratio", default=4) * hidden_size, "gelu", gated=False),
        fields.integer("max_seq_len", default=2048),
        eps=1e-5,
        tied=True,
        norm="layer",
        own=Blocks(NAMES, norm_bias=False),
    )


def _read_attention(fields: Fields, hidden_size: int) -> AttentionSpec:
    raw = fields.raw.get("attn_config") or {}
    if not isinstance(raw, Mapping):
        raise fields.refusal("attn_config", raw, "it must be a set of fields")
    config = Fields(raw, fields.source)
    for name in ("clip_qkv", "prefix_lm", "qk_ln"):
        config.must_be_off(name)
    if not config.flag("alibi", True):
        raise config.refusal("alibi", False, "Baton runs this family with ALiBi")
    config.choice("attn_type", allowed=("multihead_attention",), default="multihead_attention")
    num_heads = fields.integer("num_attention_heads")
    attention = plain_attention(fields, num_heads, hidden_size, bias=False)
    return replace(
        attention,
        scale=config.number("softmax_scale", attention.scale),
        slopes=slopes_of(num_heads, config.number("alibi_bias_max", 8.0)),
    )


FAMILY = Family(
    "mpt",
    ("MPTForCausalLM", "MptForCausalLM"),
    read,
    BlockDecoder,
    # MosaicML published MPT before transformers had it.
    harmless_code=frozenset({"configuration_mpt.MPTConfig", "modeling_mpt.MPTForCausalLM"}),
)
