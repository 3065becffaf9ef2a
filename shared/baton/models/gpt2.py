"""GPT-2 (and DialoGPT): learned positions, LayerNorm before each block, fused q, k, v, transposed weights."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from baton.models.causal_lm import CausalLM
from baton.models.dense import CONV1D
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import plain_attention
from baton.models.layers import MLP, Attention, LayerNorm, output_layer
from baton.models.parameters import Parameters
from baton.models.spec import LayerSpec, MLPSpec, ModelSpec
from baton.models.step import Step

ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu", "relu", "silu")


class GPT2Layer:
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, parameters: Parameters, spec: ModelSpec, layer: int) -> None:
        name = f"h.{layer}"
        self.attention_norm = LayerNorm(parameters, f"{name}.ln_1", spec.hidden_size, spec.norm_eps)
        self.attention = Attention(parameters, spec, layer, [f"{name}.attn.c_attn"] * 3, f"{name}.attn.c_proj")
        self.mlp_norm = LayerNorm(parameters, f"{name}.ln_2", spec.hidden_size, spec.norm_eps)
        self.mlp = MLP(parameters, spec, layer, [f"{name}.mlp.c_fc"], f"{name}.mlp.c_proj")

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.attention(self.attention_norm(x), step)
        return x + self.mlp(self.mlp_norm(x), step)


class GPT2(CausalLM):
    """A decoder of the GPT-2 kind."""

    def __init__(self, spec: ModelSpec, parameters: Parameters) -> None:
        super().__init__(spec, parameters)
        self.embedding = parameters.tensor("wte.weight", spec.vocab_size, spec.hidden_size)
        # The checkpoint has as many positions as config.json says, however short the context that is served.
        self.position_embedding = parameters.tensor("wpe.weight", spec.num_positions, spec.hidden_size)
        self.layers = [GPT2Layer(parameters, spec, layer) for layer in range(spec.num_layers)]
        self.final_norm = LayerNorm(parameters, "ln_f", spec.hidden_size, spec.norm_eps)
        self.lm_head = output_layer(spec, parameters, self.embedding, "wte.weight")

    def forward(self, step: Step) -> Tensor:
        x = F.embedding(step.token_ids, self.embedding) + F.embedding(step.positions, self.position_embedding)
        for layer in self.layers:
            x = layer(x, step)  # [tokens, hidden_size]
        return self.final_norm(x)


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    fields.must_be_off("add_cross_attention")
    hidden_size = fields.integer("n_embd", "hidden_size")
    num_positions = fields.integer("n_positions", "n_ctx", "max_position_embeddings")
    attention = plain_attention(fields, fields.integer("n_head", "num_attention_heads"), hidden_size, bias=True)
    scale = attention.scale if fields.flag("scale_attn_weights", True) else 1.0
    by_layer = fields.flag("scale_attn_by_inverse_layer_idx", False)
    activation = fields.choice("activation_function", allowed=ACTIVATIONS, default=ACTIVATIONS[0])
    mlp = MLPSpec(fields.integer("n_inner", default=4 * hidden_size), activation, gated=False, bias=True)
    return ModelSpec(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        layers=tuple(
            LayerSpec(replace(attention, scale=scale / (layer + 1) if by_layer else scale), mlp)
            for layer in range(fields.integer("n_layer", "num_hidden_layers"))
        ),
        max_model_len=num_positions,
        num_positions=num_positions,
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        initializer_range=fields.number("initializer_range", 0.02),
        weight_form=CONV1D,
    )


FAMILY = Family("gpt2", ("GPT2LMHeadModel",), read, GPT2, eos=50256)
