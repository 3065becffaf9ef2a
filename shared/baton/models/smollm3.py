"""SmolLM 3: Llama with layers that do not rotate, every fourth one; windows in those where asked for."""

from __future__ import annotations

from dataclasses import replace

from baton.models.family import Family
from baton.models.fields import Fields
from baton.models.layer_config import SLIDING, read_attention, read_decoder, read_kinds, read_mlp, read_window
from baton.models.llama import Llama
from baton.models.spec import ModelSpec


def read(fields: Fields) -> ModelSpec:
    """Read config.json."""
    fields = fields.with_defaults(rope_theta=2e6, num_key_value_heads=4)
    attention = read_attention(fields, bias=fields.flag("attention_bias", False))
    assert attention.rope is not None
    rotates = _rotates(fields)
    window = read_window(fields, None) if fields.flag("use_sliding_window", False) else None
    kinds = read_kinds(fields, lambda layer: window is not None and not rotates[layer])
    layers = [
        replace(attention, rope=attention.rope if turns else None, window=window if kind == SLIDING else None)
        for turns, kind in zip(rotates, kinds, strict=True)
    ]
    mlp = read_mlp(fields, bias=fields.flag("mlp_bias", False))
    return read_decoder(fields, layers, mlp, attention.rope.max_len, tied=True)


def _rotates(fields: Fields) -> list[bool]:
    """Read of each layer whether it rotates: no_rope_layers has a 1 where one does."""
    num_layers, every = fields.integer("num_hidden_layers"), fields.integer("no_rope_layer_interval", default=4)
    given = fields.raw.get("no_rope_layers")
    if given is None:
        return [(layer + 1) % every != 0 for layer in range(num_layers)]
    if not isinstance(given, list) or len(given) != num_layers or any(each not in (0, 1) for each in given):
        raise fields.refusal("no_rope_layers", given, f"it must list {num_layers} of 0, 1")
    return [bool(each) for each in given]


FAMILY = Family("smollm3", ("SmolLM3ForCausalLM",), read, Llama, eos=128001)
