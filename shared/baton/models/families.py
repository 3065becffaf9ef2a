"""How each family's config.json becomes the fields of a ModelSpec.

Reads what transformers 4 and 5 write: a field that is absent means what it means to transformers' class of
the family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from baton.errors import ModelLoadError
from baton.models.fields import FIX_CONFIG, Fields
from baton.models.spec import RopeSpec

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def _heads(fields: Fields, default_head_dim: int | None, gqa_named: bool) -> tuple[int, int, int, int]:
    """Give hidden_size, num_heads, num_kv_heads, head_dim, and check that they fit together."""
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    if gqa_named and "num_key_value_heads" not in fields.raw:
        raise ModelLoadError(f"{fields.source}: config.json lacks num_key_value_heads. {FIX_CONFIG}")
    num_kv_heads = fields.integer("num_key_value_heads", default=num_heads)
    if num_heads % num_kv_heads:
        raise fields.refusal("num_key_value_heads", num_kv_heads, f"it must divide num_attention_heads={num_heads}")
    head_dim = fields.optional_integer("head_dim") or default_head_dim
    if head_dim is None and hidden_size % num_heads:
        raise fields.refusal(
            "hidden_size", hidden_size, f"without head_dim it must be a multiple of num_attention_heads={num_heads}"
        )
    return hidden_size, num_heads, num_kv_heads, head_dim or hidden_size // num_heads


def _rotary_family(
    fields: Fields,
    *,
    eps: float = 1e-6,
    head_dim: int | None = None,
    gqa_named: bool = True,
    tied: bool = False,
    activation: tuple[str, ...] = ("silu", "swish"),
) -> dict[str, Any]:
    """Read what all families with rotary embeddings and RMSNorm share."""
    hidden_size, num_heads, num_kv_heads, head_dim = _heads(fields, head_dim, gqa_named)
    num_layers = fields.integer("num_hidden_layers")
    rope, max_model_len = _rope(fields, head_dim, fields.integer("max_position_embeddings"))
    return {
        "vocab_size": fields.integer("vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": fields.integer("intermediate_size"),
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "max_model_len": max_model_len,
        "norm_eps": fields.number("rms_norm_eps", eps),
        "activation": fields.choice("hidden_activation", "hidden_act", allowed=activation, default=activation[0]),
        "tie_word_embeddings": fields.flag("tie_word_embeddings", tied),
        "windows": (None,) * num_layers,
        "attention_scales": (head_dim**-0.5,) * num_layers,
        "rope": rope,
        "initializer_range": fields.number("initializer_range", 0.02),
    }


def _llama(fields: Fields) -> dict[str, Any]:
    values = _rotary_family(fields, gqa_named=False)
    attention_bias = fields.flag("attention_bias", False)
    return values | {"qkv_bias": attention_bias, "out_bias": attention_bias, "mlp_bias": fields.flag("mlp_bias", False)}


def _mistral(fields: Fields) -> dict[str, Any]:
    values = _rotary_family(fields)
    return values | {"windows": (_window(fields, 4096),) * values["num_layers"]}


def _window(fields: Fields, default: int | None) -> int | None:
    """Read sliding_window: absent is the default, null is none."""
    return fields.optional_integer("sliding_window") if "sliding_window" in fields.raw else default


def _qwen2(fields: Fields) -> dict[str, Any]:
    fields.must_be_off("use_mrope")
    values = _rotary_family(fields)
    return values | {"qkv_bias": True, "windows": _qwen_windows(fields, values["num_layers"])}


def _qwen3(fields: Fields) -> dict[str, Any]:
    values = _rotary_family(fields, head_dim=128)
    attention_bias = fields.flag("attention_bias", False)
    return values | {
        "qk_norm": True,
        "qkv_bias": attention_bias,
        "out_bias": attention_bias,
        "windows": _qwen_windows(fields, values["num_layers"]),
    }


def _qwen_windows(fields: Fields, num_layers: int) -> tuple[int | None, ...]:
    if not fields.flag("use_sliding_window", False):
        return (None,) * num_layers
    window = _window(fields, 4096)
    first = fields.integer("max_window_layers", default=28, minimum=0)
    return _windows(fields, num_layers, window, lambda layer: layer >= first)


def _gemma2(fields: Fields) -> dict[str, Any]:
    fields.must_be_off("use_bidirectional_attention")
    values = _rotary_family(fields, head_dim=256, tied=True, activation=("gelu_pytorch_tanh",))
    num_layers = values["num_layers"]
    attention_bias = fields.flag("attention_bias", False)
    window = _window(fields, 4096)
    return values | {
        "qkv_bias": attention_bias,
        "out_bias": attention_bias,
        "windows": _windows(fields, num_layers, window, lambda layer: layer % 2 == 0),
        "attention_scales": (fields.number("query_pre_attn_scalar", 256.0) ** -0.5,) * num_layers,
        "attention_soft_cap": _soft_cap(fields, "attn_logit_softcapping", 50.0),
        "final_soft_cap": _soft_cap(fields, "final_logit_softcapping", 30.0),
    }


def _soft_cap(fields: Fields, name: str, default: float) -> float | None:
    """Read a cap: absent is the default, null is none."""
    return fields.optional_number(name) if name in fields.raw else default


def _windows(
    fields: Fields, num_layers: int, window: int | None, slides: Callable[[int], bool]
) -> tuple[int | None, ...]:
    """Give each layer's window: from layer_types where it is there, else from the family's rule."""
    layer_types = fields.raw.get("layer_types")
    if layer_types is None:
        return tuple(window if slides(layer) else None for layer in range(num_layers))
    kinds = {"sliding_attention": window, "full_attention": None}
    if (
        not isinstance(layer_types, list)
        or len(layer_types) != num_layers
        or any(kind not in kinds for kind in layer_types)
    ):
        raise fields.refusal("layer_types", layer_types, f"it must list {num_layers} of {', '.join(kinds)}")
    return tuple(kinds[kind] for kind in layer_types)


def _phi3(fields: Fields) -> dict[str, Any]:
    values = _rotary_family(fields, eps=1e-5, gqa_named=False)
    return values | {"windows": (_window(fields, None),) * values["num_layers"]}


def _learned_family(fields: Fields, num_layers: int, num_heads: int, hidden_size: int) -> dict[str, Any]:
    """Give what the families with learned positions share."""
    if hidden_size % num_heads:
        raise fields.refusal("hidden_size", hidden_size, f"it must be a multiple of the {num_heads} heads")
    return {
        "vocab_size": fields.integer("vocab_size"),
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": num_heads,
        "head_dim": hidden_size // num_heads,
        "tie_word_embeddings": fields.flag("tie_word_embeddings", True),
        "windows": (None,) * num_layers,
        "rope": None,
    }


def _gpt2(fields: Fields) -> dict[str, Any]:
    fields.must_be_off("add_cross_attention")
    hidden_size = fields.integer("n_embd", "hidden_size")
    num_layers = fields.integer("n_layer", "num_hidden_layers")
    num_positions = fields.integer("n_positions", "n_ctx", "max_position_embeddings")
    values = _learned_family(fields, num_layers, fields.integer("n_head", "num_attention_heads"), hidden_size)
    scale = values["head_dim"] ** -0.5 if fields.flag("scale_attn_weights", True) else 1.0
    by_layer = fields.flag("scale_attn_by_inverse_layer_idx", False)
    return values | {
        "intermediate_size": fields.integer("n_inner", default=4 * hidden_size),
        "max_model_len": num_positions,
        "num_positions": num_positions,
        "norm_eps": fields.number("layer_norm_epsilon", 1e-5),
        "activation": fields.choice(
            "activation_function", allowed=("gelu_new", "gelu_pytorch_tanh", "gelu", "relu", "silu"), default="gelu_new"
        ),
        "attention_scales": tuple(scale / (layer + 1) if by_layer else scale for layer in range(num_layers)),
        "initializer_range": fields.number("initializer_range", 0.02),
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
    }


def _opt(fields: Fields) -> dict[str, Any]:
    num_layers = fields.integer("num_hidden_layers")
    values = _learned_family(fields, num_layers, fields.integer("num_attention_heads"), fields.integer("hidden_size"))
    num_positions = fields.integer("max_position_embeddings")
    bias = fields.flag("enable_bias", True)
    norm_first = fields.flag("do_layer_norm_before", True)
    return values | {
        "intermediate_size": fields.integer("ffn_dim"),
        "max_model_len": num_positions,
        "num_positions": num_positions,
        "norm_eps": 1e-5,
        "activation": fields.choice("activation_function", allowed=("relu", "gelu"), default="relu"),
        "attention_scales": (values["head_dim"] ** -0.5,) * num_layers,
        "initializer_range": fields.number("init_std", 0.02),
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": bias,
        "embedding_size": fields.integer("word_embed_proj_dim", default=values["hidden_size"]),
        "norm_first": norm_first,
        "final_norm": norm_first and not fields.flag("_remove_final_layer_norm", False),
        "norm_affine": fields.flag("layer_norm_elementwise_affine", True),
    }


FAMILIES: dict[str, Callable[[Fields], dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "phi3": _phi3,
    "gpt2": _gpt2,
    "opt": _opt,
}


def _rope(fields: Fields, head_dim: int, max_positions: int) -> tuple[RopeSpec, int]:
    """Read rope_parameters (transformers 5) or rope_theta and rope_scaling (4), and the context they reach."""
    raw = fields.raw.get("rope_parameters") or fields.raw.get("rope_scaling") or {}
    if not isinstance(raw, Mapping) or any(isinstance(value, Mapping) for value in raw.values()):
        raise fields.refusal("rope_parameters", raw, "it must be one set of parameters for all layers")
    rope = Fields(raw, fields.source)
    kind = rope.raw.get("rope_type") or rope.raw.get("type") or "default"
    if fields.raw.get("model_type") == "phi3" and kind in ("su", "yarn"):
        kind = "longrope"  # its names before transformers settled on this one
    if kind not in ROPE_KINDS:
        raise fields.refusal(
            "rope_type", kind, f"Baton knows {', '.join(ROPE_KINDS)}", "Take another checkpoint of this model."
        )
    theta = rope.number("rope_theta", fields.number("rope_theta", 10000.0))
    dim = _rotary_dim(rope, fields, head_dim)
    if kind in ("default", "dynamic"):
        # Dynamic NTK leaves the frequencies alone up to max_position_embeddings, which is the longest context
        # here.
        return RopeSpec("default", theta, dim), max_positions
    if kind == "linear":
        factor = rope.number("factor", 1.0)
        return RopeSpec(kind, theta, dim, factor=factor), int(max_positions * factor)
    # A top-level value wins over the one inside, as in transformers: Phi-3 keeps it there.
    original = fields.integer(
        "original_max_position_embeddings",
        default=rope.integer("original_max_position_embeddings", default=max_positions),
    )
    if kind == "llama3":
        return _llama3(rope, theta, dim, original), max_positions
    if kind == "yarn":
        factor = rope.number("factor", max_positions / original)
        return _yarn(rope, theta, dim, original, factor), max(max_positions, int(original * factor))
    return _longrope(rope, theta, dim, original, max_positions), max_positions


def _rotary_dim(rope: Fields, fields: Fields, head_dim: int) -> int:
    partial = rope.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    dim = int(head_dim * partial)
    if not 2 <= dim + dim % 2 <= head_dim:
        raise fields.refusal(
            "partial_rotary_factor",
            partial,
            f"rotating {dim} of head_dim={head_dim} needs an even number from 2 to head_dim",
        )
    return dim


def _llama3(rope: Fields, theta: float, dim: int, original: int) -> RopeSpec:
    low, high = rope.number("low_freq_factor", 1.0), rope.number("high_freq_factor", 4.0)
    if high <= low:
        raise rope.refusal("high_freq_factor", high, f"it must be above low_freq_factor={low}")
    return RopeSpec(
        "llama3", theta, dim, rope.number("factor", 1.0), original, low_freq_factor=low, high_freq_factor=high
    )


def _yarn(rope: Fields, theta: float, dim: int, original: int, factor: float) -> RopeSpec:
    return RopeSpec(
        "yarn",
        theta,
        dim,
        factor,
        original,
        attention_factor=rope.optional_number("attention_factor"),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        mscale=rope.optional_number("mscale") or 0.0,
        mscale_all_dim=rope.optional_number("mscale_all_dim") or 0.0,
        truncate=rope.flag("truncate", True),
    )


def _longrope(rope: Fields, theta: float, dim: int, original: int, max_positions: int) -> RopeSpec:
    return RopeSpec(
        "longrope",
        theta,
        dim,
        rope.number("factor", max_positions / original),
        original,
        attention_factor=rope.optional_number("attention_factor"),
        short_factor=_factors(rope, "short_factor", dim),
        long_factor=_factors(rope, "long_factor", dim),
    )


def _factors(rope: Fields, name: str, dim: int) -> tuple[float, ...]:
    value = rope.raw.get(name)
    expected = (dim + 1) // 2
    if not isinstance(value, list) or len(value) != expected:
        raise rope.refusal(name, value, f"it must list {expected} numbers, half of the {dim} rotated dimensions")
    return tuple(rope.as_number(name, entry) for entry in value)
