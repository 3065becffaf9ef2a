"""MiniCPM 1, 2 and 4: Llama whose embeddings, residual additions and logits are scaled."""

from __future__ import annotations

from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import read_attention, read_mlp, read_rotary
from baton.models.llama import Llama
from baton.models.spec import ModelSpec


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    for name in ("num_experts", "sparse_config"):
        fields.must_be_off(name)
    hidden_size = fields.integer("hidden_size")
    depth, num_layers = fields.number("scale_depth", 1.0), fields.integer("num_hidden_layers")
    return read_rotary(
        fields,
        read_attention(fields, kv_heads_named=False, bias=fields.flag("attention_bias", False)),
        read_mlp(fields),
        tied=True,
        embedding_scale=fields.number("scale_emb", 1.0),
        residual_scale=depth / num_layers**0.5,
        logit_scale=fields.number("dim_model_base", 1.0) / hidden_size,
    )


_CODE = ("Model", "ForCausalLM", "ForSequenceClassification")
FAMILY = Family(
    "minicpm",
    ("MiniCPMForCausalLM",),
    read,
    Llama,
    eos=2,
    # Published with its definition, which is this one.
    harmless_code=frozenset(
        {"configuration_minicpm.MiniCPMConfig", *(f"modeling_minicpm.MiniCPM{name}" for name in _CODE)}
    ),
)
