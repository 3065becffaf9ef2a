"""The table of rotations, one row a position, computed once at load as transformers computes it.

Frequencies are computed in fp32 on the CPU whatever the device, so that every worker of a model has the same
table. Sources: linear (kaiokendev), llama3 (Meta), YaRN (arXiv:2309.00071), LongRoPE (arXiv:2402.13753).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from baton.models.spec import ModelSpec, RopeSpec


def rope_table(rope: RopeSpec, max_positions: int, device: torch.device) -> Tensor:
    """Make the cosines and sines of all positions.

    With longrope, `max_positions` beyond the original context selects the long factors for every position:
    keys in a cache keep the rotation they were written with, so one model serves with one set of factors.

    Returns:
        [max_positions, 2, rotated dims / 2] fp32; index 0 of dim 1 is the cosine, 1 the sine.
    """
    if device.type == "meta":
        return torch.empty(max_positions, 2, (rope.dim + 1) // 2, device=device)
    frequencies = _frequencies(rope, max_positions)
    angles = torch.arange(max_positions, dtype=torch.float32)[:, None] * frequencies  # [positions, rotated / 2]
    return (torch.stack((angles.cos(), angles.sin()), dim=1) * _attention_factor(rope)).to(device)


def _frequencies(rope: RopeSpec, max_positions: int) -> Tensor:
    exponents = torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim
    if rope.kind == "longrope":
        factors = rope.long_factor if _is_long(rope, max_positions) else rope.short_factor
        return 1.0 / (torch.tensor(factors, dtype=torch.float32) * rope.theta**exponents)
    frequencies = 1.0 / rope.theta**exponents
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        return _llama3(frequencies, rope)
    if rope.kind == "yarn":
        return _yarn(rope.theta**exponents, rope)
    return frequencies


def _llama3(frequencies: Tensor, rope: RopeSpec) -> Tensor:
    """Slow low frequencies down by the factor, leave high ones, and blend between."""
    wavelengths = 2 * math.pi / frequencies
    slowed = torch.where(
        wavelengths > rope.original_max_len / rope.low_freq_factor, frequencies / rope.factor, frequencies
    )
    smooth = (rope.original_max_len / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - smooth) * slowed / rope.factor + smooth * slowed
    is_high = wavelengths < rope.original_max_len / rope.high_freq_factor
    is_low = wavelengths > rope.original_max_len / rope.low_freq_factor
    return torch.where(~is_high & ~is_low, blended, slowed)


def _yarn(periods: Tensor, rope: RopeSpec) -> Tensor:
    """Interpolate the dimensions that turn less than beta_slow times over the original context, by a ramp."""

    def dimension(num_rotations: float) -> float:
        turns = math.log(rope.original_max_len / (num_rotations * 2 * math.pi))
        return rope.dim * turns / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    if low == high:
        high += 0.001  # the ramp needs a width
    ramp = torch.clamp((torch.arange(rope.dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    extrapolated = 1 - ramp
    return 1.0 / (rope.factor * periods) * (1 - extrapolated) + 1.0 / periods * extrapolated


def _attention_factor(rope: RopeSpec) -> float:
    """The factor on cosines and sines that keeps attention sharp in long contexts."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.kind == "yarn":
        if rope.mscale and rope.mscale_all_dim:
            return _yarn_mscale(rope.factor, rope.mscale) / _yarn_mscale(rope.factor, rope.mscale_all_dim)
        return _yarn_mscale(rope.factor, 1.0)
    if rope.kind == "longrope" and rope.factor > 1.0:
        return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_max_len))
    return 1.0


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def rotation_kind(spec: ModelSpec) -> str:
    """Name what the served context changes in the rotation, and so in the KV; empty where it changes nothing."""
    if spec.rope is None or spec.rope.kind != "longrope":
        return ""
    return "longrope long" if _is_long(spec.rope, spec.max_model_len) else "longrope short"


def _is_long(rope: RopeSpec, max_positions: int) -> bool:
    return max_positions > rope.original_max_len
