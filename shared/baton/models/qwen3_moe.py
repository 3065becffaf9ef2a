"""Qwen3-MoE: Qwen3 with a mixture of experts in its sparse layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from baton.kernels.moe_routing import Routing
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import read_attention, read_mlp, read_rotary, read_window
from baton.models.mixtral import Mixtral
from baton.models.moe import ExpertNames, read_moe, sparse_layers
from baton.models.spec import ModelSpec, MoESpec


class Qwen3MoE(Mixtral):
    """A decoder of the Qwen3-MoE kind."""

    EXPERTS = ExpertNames()


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    attention = read_attention(fields, bias=fields.flag("attention_bias", False))
    window = read_window(fields) if fields.flag("use_sliding_window", False) else None
    spec = read_rotary(fields, replace(attention, qk_norm="head", window=window), read_mlp(fields))
    return with_experts(fields, spec, read_experts(fields))


def read_experts(fields: Fields, **own: Any) -> MoESpec:
    """Read what the experts of Qwen2-MoE and Qwen3-MoE have in common."""
    routing = Routing(fields.integer("num_experts_per_tok"), renormalized=fields.flag("norm_topk_prob", False))
    return read_moe(fields, routing, fields.integer("moe_intermediate_size"), **own)


def with_experts(fields: Fields, spec: ModelSpec, experts: MoESpec) -> ModelSpec:
    """Give experts to the layers that mlp_only_layers and decoder_sparse_step leave to them."""
    step = fields.integer("decoder_sparse_step", default=1)
    dense = fields.raw.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(layer) is int for layer in dense):
        raise fields.refusal("mlp_only_layers", dense, "it must list numbers of layers")
    return sparse_layers(spec, experts, lambda layer: layer not in dense and (layer + 1) % step == 0)


FAMILY = Family("qwen3_moe", ("Qwen3MoeForCausalLM",), read, Qwen3MoE)
