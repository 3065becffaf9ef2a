"""OPT: learned positions (the first in row 2 of their table), LayerNorm before each block or after it (350m)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from baton.models.causal_lm import CausalLM
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import plain_attention
from baton.models.layers import MLP, Attention, LayerNorm, output_layer
from baton.models.parameters import Parameters
from baton.models.spec import LayerSpec, MLPSpec, ModelSpec
from baton.models.step import Step

POSITION_OFFSET = 2


@dataclass(frozen=True, slots=True)
class OPTOwn:
    """What only OPT has."""

    embedding_size: int  # the width of its embeddings
    norm_first: bool  # OPT-350m normalizes after each block instead
    final_norm: bool
    norm_affine: tuple[bool, bool]  # whether norms have weight, and bias: both or none


class OPTLayer:
    """Attention and feed-forward around a residual stream, normalized before or after each."""

    def __init__(self, parameters: Parameters, spec: ModelSpec, own: OPTOwn, layer: int) -> None:
        name = f"layers.{layer}"
        self.attention_norm, self.mlp_norm = (
            LayerNorm(parameters, f"{name}.{which}_layer_norm", spec.hidden_size, spec.norm_eps, *own.norm_affine)
            for which in ("self_attn", "final")
        )
        qkv = [f"{name}.self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj")]
        self.attention = Attention(parameters, spec, layer, qkv, f"{name}.self_attn.out_proj")
        self.mlp = MLP(parameters, spec, layer, [f"{name}.fc1"], f"{name}.fc2")
        self.norm_first = own.norm_first

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        if self.norm_first:
            x = x + self.attention(self.attention_norm(x), step)
            return x + self.mlp(self.mlp_norm(x), step)
        x = self.attention_norm(x + self.attention(x, step))
        return self.mlp_norm(x + self.mlp(x, step))


class OPT(CausalLM):
    """A decoder of the OPT kind; where its embeddings are narrower than its layers, matrices lie between."""

    own: OPTOwn

    def __init__(self, spec: ModelSpec, parameters: Parameters) -> None:
        super().__init__(spec, parameters)
        own, width, size = self.own, self.own.embedding_size, spec.hidden_size
        self.embedding = parameters.tensor("embed_tokens.weight", spec.vocab_size, width)
        table = parameters.tensor("embed_positions.weight", spec.num_positions + POSITION_OFFSET, size)
        self.position_embedding = table[POSITION_OFFSET:]
        self.project_in = self.project_out = None
        if width != size:
            self.project_in = parameters.linear([("project_in", size)], width)
            self.project_out = parameters.linear([("project_out", width)], size)
        self.layers = [OPTLayer(parameters, spec, own, layer) for layer in range(spec.num_layers)]
        self.final_norm = None
        if own.final_norm:
            self.final_norm = LayerNorm(parameters, "final_layer_norm", size, spec.norm_eps, *own.norm_affine)
        self.lm_head = output_layer(spec, parameters, self.embedding, "embed_tokens.weight")

    def forward(self, step: Step) -> Tensor:
        x = F.embedding(step.token_ids, self.embedding)
        if self.project_in is not None:
            x = self.project_in(x, step)
        x = x + F.embedding(step.positions, self.position_embedding)  # [tokens, hidden_size]
        for layer in self.layers:
            x = layer(x, step)
        return x if self.final_norm is None else self.final_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden if self.project_out is None else self.project_out(hidden))


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    hidden_size, num_positions = fields.integer("hidden_size"), fields.integer("max_position_embeddings")
    bias, norm_first = fields.flag("enable_bias", True), fields.flag("do_layer_norm_before", True)
    activation = fields.choice("activation_function", allowed=("relu", "gelu"), default="relu")
    layer = LayerSpec(
        plain_attention(fields, fields.integer("num_attention_heads"), hidden_size, bias),
        MLPSpec(fields.integer("ffn_dim"), activation, gated=False, bias=bias),
    )
    return ModelSpec(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        layers=(layer,) * fields.integer("num_hidden_layers"),
        max_model_len=num_positions,
        num_positions=num_positions,
        norm_eps=1e-5,
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        initializer_range=fields.number("init_std", 0.02),
        norm="layer",
        own=OPTOwn(
            embedding_size=fields.integer("word_embed_proj_dim", default=hidden_size),
            norm_first=norm_first,
            final_norm=norm_first and not fields.flag("_remove_final_layer_norm", False),
            norm_affine=(fields.flag("layer_norm_elementwise_affine", True),) * 2,
        ),
    )


FAMILY = Family("opt", ("OPTForCausalLM",), read, OPT, eos=2)
