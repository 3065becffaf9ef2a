"""The table of rotations, one row a position, computed once at load."""

from __future__ import annotations

import torch
from torch import Tensor

from baton.models.spec import ModelSpec, RopeSpec


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
    if spec.rope is None or not spec.rope.long_frequencies:
        return ""
    return "longrope long" if _is_long(spec.rope, spec.max_model_len) else "longrope short"


def _is_long(rope: RopeSpec, max_positions: int) -> bool:
    return bool(rope.long_frequencies) and max_positions > rope.original_max_len
