"""Say how the attention kernels are launched on a device: tiles, warps and stages, by compute capability and Triton version.

A fixed table, no search at run time: the same device gives the same launches, so the same bits, in every process.
A choice may depend on type and size of the heads, never on the batch, or a sequence's result would depend on its
neighbours. A capability that is not in the table gets SMALL, a Triton version that is not in it the newest one before
it. `baton bench kernels --sweep` times other choices; kernels/README.md has what it gave. The other operations are
bound by memory, and their few constants stand in their files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from baton.kernels.launch import INTERPRET, triton_version

Heads = Literal["64", "128", "256", "fp32"]
"""Heads of up to so many two-byte elements, or of any number of four bytes."""


@dataclass(frozen=True, slots=True)
class DecodeLaunch:
    """How the decode kernel is launched."""

    block_n: int  # context tokens a step
    num_warps: int
    num_stages: int
    programs_per_sm: int


@dataclass(frozen=True, slots=True)
class PrefillLaunch:
    """How the kernel of prompt chunks is launched."""

    block_m: int  # query tokens times heads of a group
    block_n: int  # context tokens a step
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class Launches:
    """The choices for one device."""

    decode: dict[Heads, DecodeLaunch]
    prefill: dict[Heads, PrefillLaunch]


LARGE = Launches(
    # Large tiles, because a tile's work is a chain of small steps that a lone sequence waits for: 10.7 us at 1 x 1k
    # where tiles of 64 take 11.4 to 14.1. At 128 a program takes 78,356 bytes of shared memory, so two fit an SM;
    # half the head leaves room for twice the programs; wide ones spill registers in tiles of more than 32.
    decode={
        "64": DecodeLaunch(128, 4, 3, 4),
        "128": DecodeLaunch(128, 4, 3, 2),
        "256": DecodeLaunch(32, 4, 3, 2),
        "fp32": DecodeLaunch(32, 4, 3, 2),
    },
    # Block ids, then K and V, are loaded ahead, so seven stages are three tiles ahead: 385 TFLOP/s at 8k where three
    # stages give 327. Wider heads and fp32 do not fit at full tiles: 131,072 and 139,520 bytes as they are.
    prefill={
        "64": PrefillLaunch(128, 64, 8, 7),
        "128": PrefillLaunch(128, 64, 8, 7),
        "256": PrefillLaunch(128, 32, 8, 2),
        "fp32": PrefillLaunch(64, 32, 8, 2),
    },
)
"""Measured on an H200 (9.0) under Triton 3.6, for heads of 128."""

SMALL = Launches(
    decode={
        "64": DecodeLaunch(64, 4, 3, 2),
        "128": DecodeLaunch(64, 4, 3, 2),
        "256": DecodeLaunch(32, 4, 3, 1),
        "fp32": DecodeLaunch(32, 4, 3, 1),
    },
    prefill={
        "64": PrefillLaunch(128, 64, 8, 3),
        "128": PrefillLaunch(128, 64, 8, 3),
        "256": PrefillLaunch(64, 32, 4, 2),
        "fp32": PrefillLaunch(32, 16, 4, 2),
    },
)
"""For the 101,376 bytes of shared memory that a block has at least from 8.0 on (8.6, 8.9, 12.0); chosen to fit, not measured there."""

_TABLE: dict[tuple[int, int], dict[tuple[int, int], Launches]] = {
    (8, 0): {(3, 6): LARGE},  # fits (139,520 of 166,912 bytes), not measured
    (9, 0): {(3, 6): LARGE},  # measured
    (10, 0): {(3, 6): LARGE},  # fits (165,888 of 232,448 bytes), not measured
}
"""Compute capability -> Triton's major and minor version -> choices."""


def launches(capability: tuple[int, int], triton_version: tuple[int, int]) -> Launches:
    """Look a device up."""
    known = _TABLE.get(capability)
    if known is None:
        return SMALL
    return known[max((version for version in known if version <= triton_version), default=min(known))]


def heads_of(q: Tensor) -> Heads:
    """Give the column of the table for queries [tokens, heads, head_dim]."""
    if q.element_size() > 2:
        return "fp32"
    return "64" if q.shape[2] <= 64 else "128" if q.shape[2] <= 128 else "256"


@cache
def launches_on(device: torch.device) -> Launches:
    """Look a torch device up; the interpreter, which has no capability, takes the default."""
    if INTERPRET:
        return SMALL
    major, minor = str(triton_version()).split(".")[:2]
    return launches(torch.cuda.get_device_capability(device), (int(major), int(minor)))
