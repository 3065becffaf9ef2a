"""How a checkpoint's config.json says what positions turn: rope_parameters (transformers 5) or rope_scaling (4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from baton.models.fields import Fields
from baton.models.spec import RopeSpec

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def read_rope(fields: Fields, head_dim: int, names: Mapping[str, str]) -> RopeSpec:
    """Read the rotation of heads of this size; `names` are the family's other names for kinds."""
    max_positions = fields.integer("max_position_embeddings")
    raw = fields.raw.get("rope_parameters") or fields.raw.get("rope_scaling") or {}
    if not isinstance(raw, Mapping) or any(isinstance(value, Mapping) for value in raw.values()):
        raise fields.refusal("rope_parameters", raw, "it must be one set of parameters for all layers")
    rope = Fields(raw, fields.source)
    kind = rope.raw.get("rope_type") or rope.raw.get("type") or "default"
    kind = names.get(kind, kind)
    if kind not in ROPE_KINDS:
        raise fields.refusal(
            "rope_type", kind, f"Baton knows {', '.join(ROPE_KINDS)}", "Take another checkpoint of this model."
        )
    theta = rope.number("rope_theta", fields.number("rope_theta", 10000.0))
    dim = _rotary_dim(rope, fields, head_dim)
    if kind in ("default", "dynamic"):
        # Dynamic NTK leaves the frequencies alone up to max_position_embeddings, the longest context here.
        return RopeSpec("default", theta, dim)
    if kind == "linear":
        return RopeSpec(kind, theta, dim, rope.number("factor", 1.0))
    # A top-level value wins over the one inside, as in transformers: Phi-3 keeps it there.
    original = fields.integer(
        "original_max_position_embeddings",
        default=rope.integer("original_max_position_embeddings", default=max_positions),
    )
    if kind == "llama3":
        return _llama3(rope, RopeSpec(kind, theta, dim, rope.number("factor", 1.0), original))
    factor = rope.number("factor", max_positions / original)
    read = _yarn if kind == "yarn" else _longrope
    return read(rope, RopeSpec(kind, theta, dim, factor, original, rope.optional_number("attention_factor")))


def longest_context(rope: RopeSpec, max_positions: int) -> int:
    """The context that a rotation reaches, where config.json says `max_position_embeddings`."""
    if rope.kind == "linear":
        return int(max_positions * rope.factor)
    if rope.kind == "yarn":
        return max(max_positions, int(rope.original_max_len * rope.factor))
    return max_positions


def _rotary_dim(rope: Fields, fields: Fields, head_dim: int) -> int:
    partial = rope.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    dim = int(head_dim * partial)
    if not 2 <= dim + dim % 2 <= head_dim:
        limit = f"rotating {dim} of head_dim={head_dim} needs an even number from 2 to head_dim"
        raise fields.refusal("partial_rotary_factor", partial, limit)
    return dim


def _llama3(fields: Fields, rope: RopeSpec) -> RopeSpec:
    low, high = fields.number("low_freq_factor", 1.0), fields.number("high_freq_factor", 4.0)
    if high <= low:
        raise fields.refusal("high_freq_factor", high, f"it must be above low_freq_factor={low}")
    return replace(rope, low_freq_factor=low, high_freq_factor=high)


def _yarn(fields: Fields, rope: RopeSpec) -> RopeSpec:
    return replace(
        rope,
        beta_fast=fields.number("beta_fast", 32.0),
        beta_slow=fields.number("beta_slow", 1.0),
        mscale=fields.optional_number("mscale") or 0.0,
        mscale_all_dim=fields.optional_number("mscale_all_dim") or 0.0,
        truncate=fields.flag("truncate", True),
    )


def _longrope(fields: Fields, rope: RopeSpec) -> RopeSpec:
    short, long = (_factors(fields, name, rope.dim) for name in ("short_factor", "long_factor"))
    return replace(rope, short_factor=short, long_factor=long)


def _factors(fields: Fields, name: str, dim: int) -> tuple[float, ...]:
    value = fields.raw.get(name)
    expected = (dim + 1) // 2
    if not isinstance(value, list) or len(value) != expected:
        raise fields.refusal(name, value, f"it must list {expected} numbers, half of the {dim} rotated dimensions")
    return tuple(fields.as_number(name, entry) for entry in value)
