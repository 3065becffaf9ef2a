"""Mixtral: Llama with a mixture of experts for a feed-forward, and the decoder that other sparse families vary."""

from __future__ import annotations

from dataclasses import replace

from baton.kernels.moe_routing import Routing
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import read_attention, read_mlp, read_rotary, read_window
from baton.models.layers import MLP
from baton.models.llama import Llama
from baton.models.moe import ExpertNames, MoE, read_moe, sparse_layers
from baton.models.spec import ModelSpec, MoESpec

NAMES = ExpertNames("block_sparse_moe", each=("w1", "w3", "w2"))


class Mixtral(Llama):
    """A decoder of the Llama kind, some or all of whose layers have experts."""

    EXPERTS = NAMES

    def _mlp(self, layer: int) -> MLP | MoE:
        if not isinstance(self.spec.layers[layer].mlp, MoESpec):
            return super()._mlp(layer)
        return MoE(self.parameters, self.spec, layer, self.EXPERTS)


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    attention = replace(read_attention(fields), window=read_window(fields, None))
    routing = Routing(fields.integer("num_experts_per_tok", default=2), renormalized=True)
    spec = read_rotary(fields, attention, read_mlp(fields), eps=1e-5)
    return sparse_layers(spec, read_moe(fields, routing, fields.integer("intermediate_size")))


FAMILY = Family("mixtral", ("MixtralForCausalLM",), read, Mixtral, eos=2)
