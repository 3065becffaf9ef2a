"""GPT-2 (and DialoGPT): learned positions, LayerNorm before each block, fused q, k, v, transposed weights."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from baton.models.blocks import BlockDecoder, Blocks
from baton.models.dense import CONV1D
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import plain_attention
from baton.models.names import Names
from baton.models.parameters import Parameters
from baton.models.spec import LayerSpec, MLPSpec, ModelSpec
from baton.models.step import Step

ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu", "relu", "silu")


NAMES = Names(
    embedding="wte",
    layers="h",
    attention_norm="ln_1",
    qkv=("attn.c_attn",) * 3,
    out="attn.c_proj",
    mlp_norm="ln_2",
    up=("mlp.c_fc",),
    down="mlp.c_proj",
    final_norm="ln_f",
)


class GPT2(BlockDecoder):
    """A decoder of the GPT-2 kind."""

    def __init__(self, spec: ModelSpec, parameters: Parameters) -> None:
        super().__init__(spec, parameters)
        # The checkpoint has as many positions as config.json says, however short the context that is served.
        self.position_embedding = parameters.tensor("wpe.weight", spec.num_positions, spec.hidden_size)

    def embed(self, step: Step) -> Tensor:
        return super().embed(step) + F.embedding(step.positions, self.position_embedding)


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
        norm="layer",
        own=Blocks(NAMES),
    )


FAMILY = Family("gpt2", ("GPT2LMHeadModel",), read, GPT2, eos=50256)
