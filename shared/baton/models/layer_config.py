"""What config.json says of a model's layers, in the names that most families share.

A field that is absent means what it means to transformers' class of the family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from baton.models.fields import Fields
from baton.models.rope import read_rope
from baton.models.spec import AttentionSpec, LayerSpec, MLPSpec, ModelSpec

SLIDING, FULL = "sliding_attention", "full_attention"


def read_attention(
    fields: Fields,
    *,
    head_dim: int | None = None,
    kv_heads_named: bool = True,
    bias: bool = False,
    rope_names: Mapping[str, str] | None = None,
    interleaved: bool = False,
) -> AttentionSpec:
    """Read rotated attention without a window.

    Args:
        head_dim: the family's, where config.json has none; None: hidden_size shared among the heads.
        kv_heads_named: num_key_value_heads must be there, since no checkpoint has the family's default.
        rope_names: the family's other names for kinds of rotation.
        interleaved: how the family pairs the dimensions that turn.
    """
    attention = read_heads(fields, head_dim, kv_heads_named)
    rope = replace(read_rope(fields, attention.head_dim, rope_names or {}), interleaved=interleaved)
    return replace(attention, rope=rope, qkv_bias=bias, out_bias=bias)


def read_heads(fields: Fields, head_dim: int | None = None, kv_heads_named: bool = True) -> AttentionSpec:
    """Read attention without positions, biases and window; arguments as of `read_attention`."""
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    is_needed = kv_heads_named and "num_key_value_heads" not in fields.raw
    num_kv_heads = fields.integer("num_key_value_heads", default=None if is_needed else num_heads)
    if num_heads % num_kv_heads:
        raise fields.refusal("num_key_value_heads", num_kv_heads, f"it must divide num_attention_heads={num_heads}")
    head_dim = fields.optional_integer("head_dim") or head_dim
    if head_dim is None and hidden_size % num_heads:
        limit = f"without head_dim it must be a multiple of num_attention_heads={num_heads}"
        raise fields.refusal("hidden_size", hidden_size, limit)
    head_dim = head_dim or hidden_size // num_heads
    return AttentionSpec(num_heads, num_kv_heads, head_dim, head_dim**-0.5)


def plain_attention(fields: Fields, num_heads: int, hidden_size: int, bias: bool) -> AttentionSpec:
    """Attention of a model with learned positions: its heads are hidden_size, and each has a KV head."""
    if hidden_size % num_heads:
        raise fields.refusal("hidden_size", hidden_size, f"it must be a multiple of the {num_heads} heads")
    head_dim = hidden_size // num_heads
    return AttentionSpec(num_heads, num_heads, head_dim, head_dim**-0.5, qkv_bias=bias, out_bias=bias)


GATES = ("silu", "swish")
PLAIN = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu")


def read_mlp(
    fields: Fields,
    activations: tuple[str, ...] = GATES,
    *,
    bias: bool = False,
    gated: bool = True,
    default: str | None = None,
) -> MLPSpec:
    """Read a feed-forward; `default`: of the activations, where none is named; None: the first."""
    default = default or activations[0]
    activation = fields.choice("hidden_activation", "hidden_act", allowed=activations, default=default)
    return MLPSpec(fields.integer("intermediate_size"), activation, gated=gated, bias=bias)


def read_rotary(
    fields: Fields,
    attention: AttentionSpec,
    mlp: MLPSpec,
    windows: Sequence[int | None] | None = None,
    *,
    eps: float = 1e-6,
    tied: bool = False,
    **more: Any,
) -> ModelSpec:
    """Read the rest of a model whose layers all rotate alike.

    Args:
        windows: of each layer; None: the attention's.
        eps, tied, more: as of `read_decoder`.
    """
    assert attention.rope is not None
    windows = windows or (attention.window,) * fields.integer("num_hidden_layers")
    layers = [replace(attention, window=window) for window in windows]
    return read_decoder(fields, layers, mlp, attention.rope.max_len, eps=eps, tied=tied, **more)


def read_decoder(
    fields: Fields,
    attentions: Sequence[AttentionSpec],
    mlp: MLPSpec,
    max_model_len: int,
    *,
    eps: float = 1e-6,
    tied: bool = False,
    **more: Any,
) -> ModelSpec:
    """Read the rest of a model.

    Args:
        attentions: of each layer.
        eps, tied: what rms_norm_eps and tie_word_embeddings are where they are absent.
        more: fields of the spec that only some families have.
    """
    return ModelSpec(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        layers=tuple(LayerSpec(attention, mlp) for attention in attentions),
        max_model_len=max_model_len,
        norm_eps=fields.number("rms_norm_eps", eps),
        tie_word_embeddings=fields.flag("tie_word_embeddings", tied),
        initializer_range=fields.number("initializer_range", 0.02),
        **more,
    )


def read_window(fields: Fields, default: int | None = 4096) -> int | None:
    """Read sliding_window: absent is the default, null is none."""
    return fields.optional_integer("sliding_window") if "sliding_window" in fields.raw else default


def read_windows(fields: Fields, slides: Callable[[int], bool]) -> tuple[int | None, ...]:
    """Read each layer's window: layer_types says which layers slide, or else the family's rule."""
    window = read_window(fields)
    return tuple(window if kind == SLIDING else None for kind in read_kinds(fields, slides))


def read_kinds(fields: Fields, slides: Callable[[int], bool]) -> tuple[str, ...]:
    """Read each layer's kind, sliding_attention or full_attention: from layer_types, or else by the family's rule."""
    num_layers, layer_types = fields.integer("num_hidden_layers"), fields.raw.get("layer_types")
    if layer_types is None:
        return tuple(SLIDING if slides(layer) else FULL for layer in range(num_layers))
    kinds = (SLIDING, FULL)
    if not (isinstance(layer_types, list) and len(layer_types) == num_layers and all(k in kinds for k in layer_types)):
        raise fields.refusal("layer_types", layer_types, f"it must list {num_layers} of {', '.join(kinds)}")
    return tuple(layer_types)
