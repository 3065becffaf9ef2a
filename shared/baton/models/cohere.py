"""Command R and Aya: attention and feed-forward side by side behind one LayerNorm, neighbours turn, logits are scaled.

Command R7B and Command A (Cohere 2): three of four layers have a window, and only they rotate.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from baton.models.blocks import BlockDecoder, Blocks
from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import (
    SLIDING,
    read_attention,
    read_decoder,
    read_kinds,
    read_mlp,
    read_rotary,
    read_window,
)
from baton.models.spec import AttentionSpec, ModelSpec

BLOCKS = Blocks(parallel=True, shared_norm=True, norm_bias=False)


def read(fields: Fields) -> ModelSpec:
    """Read config.json of the first generation."""
    fields, attention = _read_common(fields)
    if fields.flag("use_qk_norm", False):
        attention = replace(attention, qk_norm="layer")
    return read_rotary(fields, attention, read_mlp(fields), **_rest(fields))


def read_2(fields: Fields) -> ModelSpec:
    """Read config.json of the second generation."""
    fields, attention = _read_common(fields)
    assert attention.rope is not None
    every, window = fields.integer("sliding_window_pattern", default=4), read_window(fields)
    layers = [
        replace(attention, window=window) if kind == SLIDING and window else replace(attention, rope=None)
        for kind in read_kinds(fields, lambda layer: (layer + 1) % every != 0)
    ]
    return read_decoder(fields, layers, read_mlp(fields), attention.rope.max_len, **_rest(fields))


def _read_common(fields: Fields) -> tuple[Fields, AttentionSpec]:
    fields = fields.known_as(rms_norm_eps="layer_norm_eps").with_defaults(
        rms_norm_eps=1e-5, tie_word_embeddings=True, logit_scale=0.0625
    )
    bias = fields.flag("attention_bias", False)
    return fields, read_attention(fields, kv_heads_named=False, bias=bias, interleaved=True)


def _rest(fields: Fields) -> dict[str, Any]:
    return {"norm": "layer", "logit_scale": fields.number("logit_scale", 1.0), "own": BLOCKS}


FAMILY = Family("cohere", ("CohereForCausalLM",), read, BlockDecoder, eos=255001)
COHERE2_FAMILY = Family("cohere2", ("Cohere2ForCausalLM",), read_2, BlockDecoder, eos=255001)
