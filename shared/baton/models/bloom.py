"""BLOOM: no positions but slopes that lower attention with distance (ALiBi), LayerNorm behind the embedding and before each block."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from baton.models.blocks import BlockDecoder, Blocks
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import plain_attention, read_decoder
from baton.models.layers import LayerNorm
from baton.models.names import Names
from baton.models.parameters import Parameters
from baton.models.slopes import slopes_of
from baton.models.spec import MLPSpec, ModelSpec
from baton.models.step import Step

NAMES = Names(
    embedding="word_embeddings",
    layers="h",
    qkv=("self_attention.query_key_value",) * 3,
    by_head=True,
    out="self_attention.dense",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    final_norm="ln_f",
)


class Bloom(BlockDecoder):
    """A decoder of the BLOOM kind."""

    def __init__(self, spec: ModelSpec, parameters: Parameters) -> None:
        super().__init__(spec, parameters)
        self.embedding_norm = LayerNorm(parameters, "word_embeddings_layernorm", spec.hidden_size, spec.norm_eps)

    def embed(self, step: Step) -> Tensor:
        return self.embedding_norm(super().embed(step))


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    fields.must_be_off("apply_residual_connection_post_layernorm")
    fields = fields.known_as(
        hidden_size="n_embed",
        num_attention_heads="n_head",
        num_hidden_layers="n_layer",
        rms_norm_eps="layer_norm_epsilon",
    )
    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    attention = replace(plain_attention(fields, num_heads, hidden_size, bias=True), slopes=slopes_of(num_heads))
    return read_decoder(
        fields,
        (attention,) * fields.integer("num_hidden_layers"),
        MLPSpec(4 * hidden_size, "gelu_new", gated=False, bias=True),
        fields.integer("seq_length", default=2048),  # what it was trained on
        eps=1e-5,
        tied=True,
        norm="layer",
        own=Blocks(NAMES),
    )


FAMILY = Family("bloom", ("BloomForCausalLM",), read, Bloom, eos=2)
