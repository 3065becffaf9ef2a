"""DeepSeek-V2 and V3 (Moonlight too): attention over one cached vector a token, a mixture of experts behind the first layers."""

from __future__ import annotations

from dataclasses import replace

from baton.kernels.moe_routing import Routing
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.latent import LatentAttention
from baton.models.layer_config import read_mlp, read_rotary
from baton.models.mixtral import Mixtral
from baton.models.moe import ExpertNames, read_moe, sparse_layers
from baton.models.parameters import Parameters
from baton.models.rope import read_rope, read_score_factor
from baton.models.spec import AttentionSpec, LatentSpec, ModelSpec


class DeepSeek(Mixtral):
    """A decoder of the Llama kind with latent attention."""

    EXPERTS = ExpertNames(shared="shared_experts")

    def __init__(self, spec: ModelSpec, parameters: Parameters) -> None:
        super().__init__(spec, parameters)
        # Layers behind the last one predict further tokens in training.
        parameters.unused |= {f"layers.{spec.num_layers + at}." for at in range(self.own)}

    def _attention(self, layer: int) -> LatentAttention:
        return LatentAttention(self.parameters, self.spec, layer, f"{self.NAMES.layers}.{layer}.self_attn")


def read_v2(fields: Fields) -> ModelSpec:
    """Read config.json of V2."""
    fields.choice("scoring_func", allowed=("softmax",), default="softmax")
    fields.must_be_off("norm_topk_prob")  # what else it changes, DeepSeek's code and transformers do not agree on
    method = fields.choice("topk_method", allowed=("greedy", "group_limited_greedy"), default="greedy")
    routing = Routing(fields.integer("num_experts_per_tok"), scale=fields.number("routed_scaling_factor", 1.0))
    if method == "group_limited_greedy":
        routing = _with_groups(fields, routing, 1, 1, 1)
    return _read(fields, routing, first_sparse=0, mlp_bias=fields.flag("mlp_bias", False))


def read_v3(fields: Fields) -> ModelSpec:
    """Read config.json of V3."""
    fields.choice("scoring_func", allowed=("sigmoid",), default="sigmoid")
    fields.choice("topk_method", allowed=("noaux_tc",), default="noaux_tc")
    routing = Routing(
        fields.integer("num_experts_per_tok", default=8),
        "sigmoid",
        renormalized=fields.flag("norm_topk_prob", True),
        scale=fields.number("routed_scaling_factor", 2.5),
    )
    return _read(fields, _with_groups(fields, routing, 8, 4, 2), first_sparse=3)


def _with_groups(fields: Fields, routing: Routing, groups: int, chosen: int, num_best: int) -> Routing:
    """Read the groups of experts, and how many of them stand for election; `groups`, `chosen`: where they are absent."""
    num_groups, num_chosen = fields.integer("n_group", default=groups), fields.integer("topk_group", default=chosen)
    if num_chosen > num_groups:
        raise fields.refusal("topk_group", num_chosen, f"it must be at most n_group={num_groups}")
    size = fields.integer("n_routed_experts") // num_groups
    if num_groups > 1 and (size < num_best or num_chosen * size < routing.num_chosen):
        least = max(num_best, -(-routing.num_chosen // num_chosen))
        raise fields.refusal("n_group", num_groups, f"each group must have at least {least} experts")
    return replace(routing, num_groups=num_groups, num_chosen_groups=num_chosen, num_group_best=num_best)


def _read(fields: Fields, routing: Routing, first_sparse: int, mlp_bias: bool = False) -> ModelSpec:
    """Read what both have; `first_sparse`: the first layer with experts, where config.json does not say it."""
    mlp = read_mlp(fields, bias=mlp_bias)
    num_mtp = fields.integer("num_nextn_predict_layers", default=1, minimum=0)
    spec = read_rotary(fields, _read_attention(fields), mlp, own=num_mtp)
    size, num_shared = fields.integer("moe_intermediate_size"), fields.integer("n_shared_experts", default=1, minimum=0)
    shared = replace(mlp, size=size * num_shared) if num_shared else None
    experts = read_moe(fields, routing, size, score_bias=routing.scoring == "sigmoid", shared=shared)
    first = fields.integer("first_k_dense_replace", default=first_sparse, minimum=0)
    every = fields.integer("moe_layer_freq", default=1)
    return sparse_layers(spec, experts, lambda layer: layer >= first and layer % every == 0)


def _read_attention(fields: Fields) -> AttentionSpec:
    rank, rope_dim, key_dim, value_dim = (
        fields.integer(name) for name in ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
    )
    if rope_dim % 2:
        raise fields.refusal("qk_rope_head_dim", rope_dim, "it must be even")
    latent = LatentSpec(rank, key_dim, value_dim, fields.optional_integer("q_lora_rank"))
    bias = fields.flag("attention_bias", False)
    return AttentionSpec(
        fields.integer("num_attention_heads"),
        1,
        rank + rope_dim,
        (key_dim + rope_dim) ** -0.5 * read_score_factor(fields),
        rope=replace(read_rope(fields, rope_dim, {}), interleaved=fields.flag("rope_interleave", True)),
        qkv_bias=bias,
        out_bias=bias,
        latent=latent,
    )


def _code(version: str) -> frozenset[str]:
    """What DeepSeek's checkpoints name, which were published before transformers had the family."""
    models = (f"modeling_deepseek.Deepseek{version}{each}" for each in ("Model", "ForCausalLM"))
    return frozenset({f"configuration_deepseek.Deepseek{version}Config", *models})


V2_FAMILY = Family("deepseek_v2", ("DeepseekV2ForCausalLM",), read_v2, DeepSeek, eos=2, harmless_code=_code("V2"))
V3_FAMILY = Family("deepseek_v3", ("DeepseekV3ForCausalLM",), read_v3, DeepSeek, eos=1, harmless_code=_code("V3"))
