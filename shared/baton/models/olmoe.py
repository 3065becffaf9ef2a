"""OLMoE: Llama with a mixture of experts in every layer, and RMSNorm over all heads of queries and keys."""

from __future__ import annotations

from dataclasses import replace

from baton.kernels.moe_routing import Routing
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import read_attention, read_mlp, read_rotary
from baton.models.moe import read_moe, sparse_layers
from baton.models.qwen3_moe import Qwen3MoE
from baton.models.spec import ModelSpec


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    fields.must_be_off("clip_qkv")
    attention = read_attention(fields, kv_heads_named=False, bias=fields.flag("attention_bias", False))
    routing = Routing(
        fields.integer("num_experts_per_tok", default=8), renormalized=fields.flag("norm_topk_prob", False)
    )
    spec = read_rotary(fields, replace(attention, qk_norm="width"), read_mlp(fields), eps=1e-5)
    return sparse_layers(spec, read_moe(fields, routing, fields.integer("intermediate_size")))


FAMILY = Family("olmoe", ("OlmoeForCausalLM",), read, Qwen3MoE, eos=50279)
