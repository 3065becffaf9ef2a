"""Phi-3.5-MoE: LayerNorm before each block, and a mixture of experts whose router chooses one after the other.

In contexts beyond the original it turns by the long factors, as it was trained; transformers keeps the short ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from baton.kernels.moe_routing import Routing
from baton.models.blocks import BlockDecoder, Blocks
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import read_attention, read_mlp, read_rotary, read_window
from baton.models.mixtral import NAMES
from baton.models.moe import read_moe, sparse_layers
from baton.models.spec import ModelSpec


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    fields = _with_scale(fields)
    attention = read_attention(fields, bias=fields.flag("attention_bias", False))
    own = Blocks(output_bias=fields.flag("lm_head_bias", False), experts=NAMES)
    spec = read_rotary(
        fields, replace(attention, window=read_window(fields, None)), read_mlp(fields), eps=1e-5, norm="layer", own=own
    )
    routing = Routing(
        fields.integer("num_experts_per_tok", default=2),
        "sparsemixer",
        jitter=fields.number("router_jitter_noise", 0.01),
    )
    return sparse_layers(spec, read_moe(fields, routing, fields.integer("intermediate_size")))


def _with_scale(fields: Fields) -> Fields:
    """Say the scale of LongRoPE's cosines and sines as other families do; Phi-MoE names one for each of its factors."""
    name = "rope_parameters" if fields.raw.get("rope_parameters") else "rope_scaling"
    rope = fields.raw.get(name)
    if not isinstance(rope, Mapping) or rope.get("long_mscale") is None:
        return fields
    if rope.get("short_mscale") != rope["long_mscale"]:
        limit = f"it must be short_mscale={rope.get('short_mscale')!r}: a cache keeps keys as they were rotated"
        raise fields.refusal("long_mscale", rope["long_mscale"], limit, "Take another checkpoint of this model.")
    return Fields({**fields.raw, name: {**rope, "attention_factor": rope["long_mscale"]}}, fields.source)


FAMILY = Family(
    "phimoe",
    ("PhimoeForCausalLM", "PhiMoEForCausalLM"),
    read,
    BlockDecoder,
    eos=2,
    # Microsoft published it before transformers had it.
    harmless_code=frozenset({"configuration_phimoe.PhiMoEConfig", "modeling_phimoe.PhiMoEForCausalLM"}),
)
