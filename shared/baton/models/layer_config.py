"""What config.json says of a model's layers, in the names that most families share.

A field that is absent means what it means to transformers' class of the family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from baton.models.fields import Fields
from baton.models.rope import read_rope
from baton.models.spec import AttentionSpec, LayerSpec, MLPSpec, ModelSpec


def read_attention(
    fields: Fields,
    *,
    head_dim: int | None = None,
    kv_heads_named: bool = True,
    bias: bool = False,
    rope_names: Mapping[str, str] | None = None,
) -> AttentionSpec:
    """Read rotated attention without a window.

    Args:
        head_dim: the family's, where config.json has none; None: hidden_size shared among the heads.
        kv_heads_named: num_key_value_heads must be there, since no checkpoint has the family's default.
        rope_names: the family's other names for kinds of rotation.
    """
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
    rope = read_rope(fields, head_dim, rope_names or {})
    return AttentionSpec(num_heads, num_kv_heads, head_dim, head_dim**-0.5, rope, qkv_bias=bias, out_bias=bias)


def plain_attention(fields: Fields, num_heads: int, hidden_size: int, bias: bool) -> AttentionSpec:
    """Attention of a model with learned positions: its heads are hidden_size, and each has a KV head."""
    if hidden_size % num_heads:
        raise fields.refusal("hidden_size", hidden_size, f"it must be a multiple of the {num_heads} heads")
    head_dim = hidden_size // num_heads
    return AttentionSpec(num_heads, num_heads, head_dim, head_dim**-0.5, qkv_bias=bias, out_bias=bias)


def read_mlp(fields: Fields, activations: tuple[str, ...] = ("silu", "swish"), *, bias: bool = False) -> MLPSpec:
    """Read a gated feed-forward; the first of the activations is the default."""
    activation = fields.choice("hidden_activation", "hidden_act", allowed=activations, default=activations[0])
    return MLPSpec(fields.integer("intermediate_size"), activation, bias=bias)


def read_rotary(
    fields: Fields,
    attention: AttentionSpec,
    mlp: MLPSpec,
    windows: Sequence[int | None] | None = None,
    *,
    eps: float = 1e-6,
    tied: bool = False,
    own: object = None,
) -> ModelSpec:
    """Read the rest of a model with rotary positions and RMSNorm.

    Args:
        windows: of each layer; None: the attention's.
        eps, tied: what rms_norm_eps and tie_word_embeddings are where they are absent.
    """
    assert attention.rope is not None
    num_layers = fields.integer("num_hidden_layers")
    return ModelSpec(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        layers=tuple(
            LayerSpec(replace(attention, window=window), mlp) for window in windows or (attention.window,) * num_layers
        ),
        max_model_len=attention.rope.max_len,
        norm_eps=fields.number("rms_norm_eps", eps),
        tie_word_embeddings=fields.flag("tie_word_embeddings", tied),
        initializer_range=fields.number("initializer_range", 0.02),
        own=own,
    )


def read_window(fields: Fields, default: int | None = 4096) -> int | None:
    """Read sliding_window: absent is the default, null is none."""
    return fields.optional_integer("sliding_window") if "sliding_window" in fields.raw else default


def read_windows(fields: Fields, slides: Callable[[int], bool]) -> tuple[int | None, ...]:
    """Read each layer's window: layer_types says which layers slide, or else the family's rule."""
    num_layers, window = fields.integer("num_hidden_layers"), read_window(fields)
    layer_types = fields.raw.get("layer_types")
    if layer_types is None:
        return tuple(window if slides(layer) else None for layer in range(num_layers))
    kinds = {"sliding_attention": window, "full_attention": None}
    fits = isinstance(layer_types, list) and len(layer_types) == num_layers and set(layer_types) <= kinds.keys()
    if not fits:
        raise fields.refusal("layer_types", layer_types, f"it must list {num_layers} of {', '.join(kinds)}")
    return tuple(kinds[kind] for kind in layer_types)
