"""gpt-oss: experts with clamped gates and biases, stored as stacks; sinks in attention, a window in every other layer, YaRN."""

from __future__ import annotations

from dataclasses import replace

from baton.kernels.moe_routing import Routing
from baton.kernels.moe_weights import Swiglu
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import read_attention, read_mlp, read_rotary, read_windows
from baton.models.mixtral import Mixtral
from baton.models.moe import ExpertNames, read_moe, sparse_layers
from baton.models.spec import ModelSpec


class GptOss(Mixtral):
    """A decoder of the gpt-oss kind."""

    EXPERTS = ExpertNames("mlp", "router", each=None, transposed=True, interleaved=True)


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    fields = fields.with_defaults(sliding_window=128)
    bias = fields.flag("attention_bias", True)
    attention = replace(read_attention(fields, head_dim=64, bias=bias), has_sinks=True)
    windows = read_windows(fields, lambda layer: layer % 2 == 0)
    # The softmax over the chosen is the softmax over all, divided by its sum.
    routing = Routing(fields.integer("num_experts_per_tok", "experts_per_token", default=4), renormalized=True)
    gate = Swiglu(fields.number("swiglu_alpha", 1.702), 1.0, fields.number("swiglu_limit", 7.0))
    size = fields.integer("intermediate_size")
    experts = read_moe(fields, routing, size, gate=gate, bias=True, router_bias=True)
    return sparse_layers(read_rotary(fields, attention, read_mlp(fields), windows, eps=1e-5), experts)


FAMILY = Family("gpt_oss", ("GptOssForCausalLM",), read, GptOss)
