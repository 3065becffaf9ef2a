"""GraniteMoE (Granite 3.x of 1B and 3B): Granite with a mixture of experts in every layer, stored as stacks."""

from __future__ import annotations

from baton.kernels.moe_routing import Routing
from baton.models import granite
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.mixtral import Mixtral
from baton.models.moe import ExpertNames, read_moe, sparse_layers
from baton.models.spec import ModelSpec


class GraniteMoE(Mixtral):
    """A decoder of the GraniteMoE kind."""

    EXPERTS = ExpertNames(
        "block_sparse_moe", "router.layer", each=None, stacks=("input_linear.weight", "output_linear.weight")
    )


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    # The softmax over the chosen is the softmax over all, divided by its sum.
    routing = Routing(fields.integer("num_experts_per_tok", default=2), renormalized=True)
    return sparse_layers(granite.read(fields), read_moe(fields, routing, fields.integer("intermediate_size")))


FAMILY = Family("granitemoe", ("GraniteMoeForCausalLM",), read, GraniteMoE, eos=2)
