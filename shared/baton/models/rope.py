"""Rotary positions: what config.json says of them, and the table of rotations that a model computes with.

Frequencies are computed as transformers computes them, in fp32 on the CPU whatever the device, so that every worker of a
model has the same. Sources: linear (kaiokendev), llama3 (Meta), YaRN (arXiv:2309.00071), LongRoPE (arXiv:2402.13753).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from baton.models.fields import Fields
from baton.models.spec import ModelSpec, RopeSpec

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def read_rope(fields: Fields, head_dim: int, names: Mapping[str, str]) -> RopeSpec:
    """Read rope_parameters (transformers 5) or rope_scaling (4), for heads of this size.

    `names`: the family's other names for kinds.
    """
    raw = fields.raw.get("rope_parameters") or fields.raw.get("rope_scaling") or {}
    if not isinstance(raw, Mapping) or any(isinstance(value, Mapping) for value in raw.values()):
        raise fields.refusal("rope_parameters", raw, "it must be one set of parameters for all layers")
    return _read(fields, Fields(raw, fields.source), head_dim, names)


def read_ropes(fields: Fields, head_dim: int) -> dict[str, RopeSpec]:
    """Read the rotation of each kind of layer, full_attention and sliding_attention.

    In transformers 5 rope_parameters has a set for each. In 4 rope_theta and rope_scaling are those of full attention,
    and the others turn by rope_local_base_freq without scaling; where that is absent, by rope_theta.
    """
    by_kind = fields.raw.get("rope_parameters")
    if by_kind is not None and not isinstance(by_kind, Mapping):
        raise fields.refusal("rope_parameters", by_kind, "it must be a set of parameters for each kind of layer")
    theta = fields.number("rope_theta", 10000.0)
    scaling = fields.raw.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise fields.refusal("rope_scaling", scaling, "it must be a set of parameters")
    old = {
        "full_attention": {"rope_theta": theta, **scaling},
        "sliding_attention": {"rope_theta": fields.number("rope_local_base_freq", theta)},
    }
    ropes = {}
    for kind, defaults in old.items():
        given = (by_kind or {}).get(kind) or defaults
        if not isinstance(given, Mapping):
            raise fields.refusal("rope_parameters", by_kind, f"its {kind} must be a set of parameters")
        given = {"rope_theta": defaults["rope_theta"], **given}
        ropes[kind] = _read(fields, Fields(given, fields.source), head_dim, {})
    return ropes


def _read(fields: Fields, rope: Fields, head_dim: int, names: Mapping[str, str]) -> RopeSpec:
    max_len = fields.integer("max_position_embeddings")
    kind = rope.raw.get("rope_type") or rope.raw.get("type") or "default"
    kind = names.get(kind, kind)
    if kind not in ROPE_KINDS:
        raise fields.refusal(
            "rope_type", kind, f"Baton knows {', '.join(ROPE_KINDS)}", "Take another checkpoint of this model."
        )
    theta = rope.number("rope_theta", fields.number("rope_theta", 10000.0))
    dim = _rotary_dim(rope, fields, head_dim)
    periods = theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)  # positions of one radian
    if kind in ("default", "dynamic"):
        # Dynamic NTK leaves the frequencies alone up to max_position_embeddings, the longest context here.
        return RopeSpec(dim, max_len, _floats(1.0 / periods))
    if kind == "linear":
        factor = rope.number("factor", 1.0)
        return RopeSpec(dim, int(max_len * factor), _floats(1.0 / periods / factor))
    # A top-level value wins over the one inside, as in transformers: Phi-3 keeps it there.
    original = fields.integer(
        "original_max_position_embeddings", default=rope.integer("original_max_position_embeddings", default=max_len)
    )
    if kind == "llama3":
        return RopeSpec(dim, max_len, _floats(_llama3(rope, 1.0 / periods, original)))
    factor = rope.number("factor", max_len / original)
    scale = rope.optional_number("attention_factor")
    if kind == "yarn":
        max_len = max(max_len, int(original * factor))
        frequencies = _yarn(rope, periods, theta, factor, original)
        return RopeSpec(dim, max_len, _floats(frequencies), scale or _yarn_scale(rope, factor))
    short, long = (_floats(1.0 / (_factors(rope, name, dim) * periods)) for name in ("short_factor", "long_factor"))
    scale = scale or math.sqrt(1 + math.log(max(1.0, factor)) / math.log(original))
    return RopeSpec(dim, max_len, short, scale, long, original)


def _rotary_dim(rope: Fields, fields: Fields, head_dim: int) -> int:
    partial = rope.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    dim = fields.optional_integer("rotary_dim") or int(head_dim * partial)
    if not 2 <= dim + dim % 2 <= head_dim:
        limit = f"rotating {dim} of head_dim={head_dim} needs an even number from 2 to head_dim"
        raise fields.refusal("partial_rotary_factor", partial, limit)
    return dim


def _llama3(rope: Fields, frequencies: Tensor, original: int) -> Tensor:
    """Slow low frequencies down by the factor, leave high ones, and blend between."""
    factor, low, high = (
        rope.number(*item) for item in (("factor", 1.0), ("low_freq_factor", 1.0), ("high_freq_factor", 4.0))
    )
    if high <= low:
        raise rope.refusal("high_freq_factor", high, f"it must be above low_freq_factor={low}")
    wavelengths = 2 * math.pi / frequencies
    slowed = torch.where(wavelengths > original / low, frequencies / factor, frequencies)
    smooth = (original / wavelengths - low) / (high - low)
    blended = (1 - smooth) * slowed / factor + smooth * slowed
    is_between = (wavelengths >= original / high) & (wavelengths <= original / low)
    return torch.where(is_between, blended, slowed)


def _yarn(rope: Fields, periods: Tensor, theta: float, factor: float, original: int) -> Tensor:
    """Interpolate the dimensions that turn less than beta_slow times over the original context, by a ramp."""
    dim = 2 * len(periods)

    def dimension(num_rotations: float) -> float:
        return dim * math.log(original / (num_rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(rope.number("beta_fast", 32.0)), dimension(rope.number("beta_slow", 1.0))
    if rope.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # the ramp needs a width
    ramp = torch.clamp((torch.arange(len(periods), dtype=torch.float32) - low) / (high - low), 0, 1)
    extrapolated = 1 - ramp
    return 1.0 / (factor * periods) * (1 - extrapolated) + 1.0 / periods * extrapolated


def _yarn_scale(rope: Fields, factor: float) -> float:
    """The factor on cosines and sines that keeps attention sharp in long contexts."""
    mscale, mscale_all_dim = rope.optional_number("mscale"), rope.optional_number("mscale_all_dim")
    if mscale and mscale_all_dim:
        return _sharpness(factor, mscale) / _sharpness(factor, mscale_all_dim)
    return _sharpness(factor, 1.0)


def _sharpness(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def read_score_factor(fields: Fields) -> float:
    """Read by how much DeepSeek's YaRN multiplies scores, beside what cosines and sines do: a factor for all dimensions."""
    rope = Fields(fields.raw.get("rope_parameters") or fields.raw.get("rope_scaling") or {}, fields.source)
    mscale_all_dim = rope.optional_number("mscale_all_dim")
    if mscale_all_dim is None or "default" in (rope.raw.get("rope_type"), rope.raw.get("type")):
        return 1.0
    return _sharpness(rope.number("factor", 1.0), mscale_all_dim) ** 2


def _factors(rope: Fields, name: str, dim: int) -> Tensor:
    value = rope.raw.get(name)
    expected = (dim + 1) // 2
    if not isinstance(value, list) or len(value) != expected:
        raise rope.refusal(name, value, f"it must list {expected} numbers, half of the {dim} rotated dimensions")
    return torch.tensor([rope.as_number(name, entry) for entry in value], dtype=torch.float32)


def _floats(tensor: Tensor) -> tuple[float, ...]:
    return tuple(tensor.tolist())


# ------------------------------------------------------------------------------------------------------------
# The table


def rope_table(rope: RopeSpec, max_positions: int, device: torch.device) -> Tensor:
    """Make the cosines and sines of all positions.

    Keys in a cache keep the rotation they were written with, so one model serves with one set of frequencies.

    Returns:
        [max_positions, 2, rotated dims / 2] fp32; index 0 of dim 1 is the cosine, 1 the sine.
    """
    if device.type == "meta":
        return torch.empty(max_positions, 2, len(rope.frequencies), device=device)
    frequencies = rope.long_frequencies if _is_long(rope, max_positions) else rope.frequencies
    # On the CPU whatever the device, so that every worker of a model has the same table.
    angles = torch.arange(max_positions, dtype=torch.float32)[:, None] * torch.tensor(frequencies, dtype=torch.float32)
    return (torch.stack((angles.cos(), angles.sin()), dim=1) * rope.scale).to(device)


def rotation_kind(spec: ModelSpec) -> str:
    """Name what the served context changes in the rotation, and so in the KV; empty where it changes nothing."""
    scaled = [rope for rope in spec.ropes if rope.long_frequencies]
    if not scaled:
        return ""
    return "longrope long" if any(_is_long(rope, spec.max_model_len) for rope in scaled) else "longrope short"


def _is_long(rope: RopeSpec, max_positions: int) -> bool:
    return bool(rope.long_frequencies) and max_positions > rope.original_max_len
