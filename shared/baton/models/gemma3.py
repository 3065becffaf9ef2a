"""Gemma 3: Gemma 2 with RMSNorm of each head's query and key instead of soft caps, and two rotations: near and far layers.

Multimodal checkpoints (Gemma3ForConditionalGeneration) are served for text; their image parts are not loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.gemma2 import ACTIVATIONS, Gemma, soft_cap
from baton.models.layer_config import SLIDING, read_decoder, read_heads, read_kinds, read_mlp, read_window
from baton.models.parameters import Parameters
from baton.models.rope import read_ropes
from baton.models.spec import ModelSpec


class Gemma3WithImages(Gemma):
    """The decoder of a checkpoint that also has an encoder of images."""

    def __init__(self, spec: ModelSpec, parameters: Parameters) -> None:
        super().__init__(spec, parameters)
        parameters.unused |= {"vision_tower.", "multi_modal_projector."}


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    fields.must_be_off("use_bidirectional_attention")
    # Published configs leave out what is as in transformers' class.
    fields = fields.with_defaults(
        vocab_size=262208,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        max_position_embeddings=131072,
        rope_theta=1e6,
        rope_local_base_freq=1e4,
    )
    bias = fields.flag("attention_bias", False)
    heads = replace(
        read_heads(fields),
        scale=fields.number("query_pre_attn_scalar", 256.0) ** -0.5,
        soft_cap=soft_cap(fields, "attn_logit_softcapping", None),
        qk_norm="head",
        qkv_bias=bias,
        out_bias=bias,
    )
    every, window = fields.integer("sliding_window_pattern", default=6), read_window(fields)
    kinds = read_kinds(fields, lambda layer: (layer + 1) % every != 0)
    ropes = read_ropes(fields, heads.head_dim)
    layers = [replace(heads, rope=ropes[kind], window=window if kind == SLIDING else None) for kind in kinds]
    return read_decoder(
        fields,
        layers,
        read_mlp(fields, ACTIVATIONS),
        fields.integer("max_position_embeddings"),  # the scaling of its rotation is within
        tied=True,
        norm_offset=1.0,
        embedding_scale=fields.integer("hidden_size") ** 0.5,
        own=soft_cap(fields, "final_logit_softcapping", None),
    )


def read_with_images(fields: Fields) -> ModelSpec:
    """Read config.json of a checkpoint whose decoder is described in text_config."""
    text = fields.raw.get("text_config")
    if not isinstance(text, Mapping):
        raise fields.refusal("text_config", text, "it must describe the decoder")
    tied = {"tie_word_embeddings": fields.raw.get("tie_word_embeddings", text.get("tie_word_embeddings"))}
    return read(Fields({**text, **tied}, fields.source))


FAMILY = Family("gemma3_text", ("Gemma3ForCausalLM",), read, Gemma, eos=1)
WITH_IMAGES = Family("gemma3", ("Gemma3ForConditionalGeneration",), read_with_images, Gemma3WithImages, eos=1)
