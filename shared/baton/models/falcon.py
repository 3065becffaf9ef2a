"""Falcon: attention and feed-forward side by side, one KV head (7B), groups with a norm for each block (40B, 180B) or one (11B)."""

from __future__ import annotations

from dataclasses import replace

from baton.models.blocks import BlockDecoder, Blocks
from baton.models.bloom import NAMES
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import PLAIN, read_attention, read_mlp, read_rotary
from baton.models.spec import ModelSpec


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    fields.must_be_off("alibi")
    fields = fields.known_as(
        num_key_value_heads="num_kv_heads",
        intermediate_size="ffn_hidden_size",
        hidden_act="activation",
        rms_norm_eps="layer_norm_epsilon",
    ).with_defaults(max_position_embeddings=2048)
    fields = fields.with_defaults(intermediate_size=4 * fields.integer("hidden_size"))
    is_new, bias = fields.flag("new_decoder_architecture", False), fields.flag("bias", False)
    if not is_new and fields.flag("multi_query", True):
        fields = Fields({**fields.raw, "num_key_value_heads": 1}, fields.source)
    return read_rotary(
        fields,
        read_attention(fields, kv_heads_named=False, bias=bias),
        read_mlp(fields, PLAIN, gated=False, bias=bias),
        eps=1e-5,
        tied=True,
        norm="layer",
        own=_read_blocks(fields, is_new),
    )


def _read_blocks(fields: Fields, is_new: bool) -> Blocks:
    num_norms = fields.integer("num_ln_in_parallel_attn", default=2 if is_new else 1)
    if not fields.flag("parallel_attn", True):
        return Blocks(NAMES)
    if num_norms == 1 or not is_new:
        return Blocks(NAMES, parallel=True, shared_norm=True)
    return Blocks(replace(NAMES, attention_norm="ln_attn", mlp_norm="ln_mlp"), parallel=True)


_CODE = ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
FAMILY = Family(
    "falcon",
    ("FalconForCausalLM",),
    read,
    BlockDecoder,
    eos=11,
    # Falcon was published before transformers had it.
    harmless_code=frozenset(
        {"configuration_falcon.FalconConfig", *(f"modeling_falcon.Falcon{name}" for name in _CODE)}
    ),
)
