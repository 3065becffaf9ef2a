"""How attention and products of few rows are launched on a device: tiles, warps and stages, by compute capability and Triton version.

A fixed table, no search at run time: the same device gives the same launches, so the same bits, in every process.
A choice of attention may depend on type and size of the heads, never on the batch, or a sequence's result would depend on its
neighbours; products, as the library's, do depend on the number of rows, except in `--deterministic`. A capability that is not in the
table gets SMALL, a Triton version that is not in it the newest one before it. `baton bench kernels --sweep` times other choices of
attention; kernels/README.md has what it gave. The other operations are bound by memory, and their few constants stand in their files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
class TileLaunch:
    """How products are launched on the matrix cores."""

    block_m: int  # rows of x
    block_n: int  # outputs
    block_k: int  # inputs a step
    num_warps: int
    num_stages: int
    prefetched: int = 0  # inputs of each output that are fetched before the wait for x
    filled_by: int = 1  # programs that splitting a product by its inputs may reach; 1: it is never split

    def num_splits(self, num_outputs: int, num_inputs: int) -> int:
        """Double up to four while the programs stay within `filled_by`; parts of 2048 inputs or fewer end at half of that."""
        num_tiles, splits = -(-num_outputs // self.block_n), 1
        while 2 * splits * num_tiles <= self.filled_by and splits < 4:
            if num_inputs <= 2048 * splits and 4 * splits * num_tiles > self.filled_by:
                break
            splits *= 2
        return splits


@dataclass(frozen=True, slots=True)
class FewRowsLaunch:
    """How products of up to 64 rows are launched; by rows and outputs, as the library does, so not in `--deterministic`."""

    row_block_n: int  # one row: outputs a program
    row_block_k: int  # inputs a step
    row_num_warps: int
    narrow: TileLaunch  # up to 16 rows
    tall: TileLaunch  # up to 64 rows
    wide: TileLaunch  # the same, for outputs that fill the device with wider tiles
    wide_from: int  # outputs

    def tile_for(self, num_rows: int, num_outputs: int) -> TileLaunch:
        """Choose for more than one row."""
        if num_rows <= self.narrow.block_m:
            return self.narrow
        return self.wide if num_outputs >= self.wide_from else self.tall


@dataclass(frozen=True, slots=True)
class MoERow:
    """How a mixture of experts is launched for one token."""

    up_n: int  # gated numbers a program
    down_n: int  # outputs a program
    block_k: int  # inputs a step
    num_warps: int


@dataclass(frozen=True, slots=True)
class MoEProduct:
    """How one of the products over tiles of an expert's rows is launched."""

    block_n: int  # outputs; of the first product pairs of them
    block_k: int  # inputs a step
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class MoETile:
    """How a mixture of experts is launched over tiles."""

    block_m: int  # rows of one expert
    group: int  # tiles of rows whose programs run together
    up: MoEProduct
    down: MoEProduct


@dataclass(frozen=True, slots=True)
class MoELaunch:
    """How a mixture of experts is launched."""

    row: MoERow
    narrow: MoETile  # up to 8 rows an expert, on average
    middle: MoETile  # up to 64
    large: MoETile
    fp32: MoETile

    def tile_for(self, num_pairs: int, num_experts: int, dtype: torch.dtype) -> MoETile:
        """Choose by how many rows an expert has on average."""
        if dtype == torch.float32:
            return self.fp32
        if num_pairs <= 8 * num_experts:
            return self.narrow
        return self.middle if num_pairs <= 64 * num_experts else self.large

    def tiles(self, dtype: torch.dtype) -> tuple[MoETile, ...]:
        """All that may be chosen."""
        return (self.fp32,) if dtype == torch.float32 else (self.narrow, self.middle, self.large)

    def invariant(self, dtype: torch.dtype) -> MoETile:
        """Choose for any number of rows."""
        return self.fp32 if dtype == torch.float32 else self.middle


SMALL_MOE = MoELaunch(
    row=MoERow(2, 4, 1024, 4),
    narrow=MoETile(16, 1, MoEProduct(32, 128, 4, 3), MoEProduct(64, 128, 4, 3)),
    middle=MoETile(64, 8, MoEProduct(64, 64, 4, 3), MoEProduct(128, 64, 4, 3)),
    large=MoETile(64, 8, MoEProduct(64, 64, 4, 3), MoEProduct(128, 64, 4, 3)),
    fp32=MoETile(16, 8, MoEProduct(32, 32, 4, 2), MoEProduct(32, 32, 4, 2)),
)
"""Fits 99 KiB of shared memory; not measured."""

HOPPER_MOE = MoELaunch(
    row=MoERow(2, 4, 2048, 4),
    narrow=MoETile(16, 1, MoEProduct(32, 128, 4, 4), MoEProduct(64, 128, 4, 4)),
    middle=MoETile(64, 8, MoEProduct(64, 64, 4, 4), MoEProduct(128, 64, 4, 4)),
    large=MoETile(128, 8, MoEProduct(128, 64, 8, 4), MoEProduct(256, 64, 8, 4)),
    fp32=MoETile(16, 8, MoEProduct(32, 32, 4, 2), MoEProduct(32, 32, 4, 2)),
)


@dataclass(frozen=True, slots=True)
class WeightOnlyLaunch:
    """How products by packed weights of four or eight bits are launched."""

    row_block_n: int  # one row: outputs a program
    int4_row_bytes: int  # bytes of each output a step
    int8_row_bytes: int
    row_num_warps: int
    narrow: TileLaunch  # up to 16 rows; a step is one part, whatever block_k
    tall: TileLaunch  # up to 64 rows
    large: TileLaunch
    int8_narrow: TileLaunch

    def tile_for(self, num_rows: int, *, is_int4: bool) -> TileLaunch:
        """Choose for more than one row."""
        if num_rows <= self.narrow.block_m:
            return self.narrow if is_int4 else self.int8_narrow
        return self.tall if num_rows <= self.tall.block_m else self.large


WEIGHT_ONLY = WeightOnlyLaunch(
    row_block_n=4,
    int4_row_bytes=1024,
    int8_row_bytes=2048,
    row_num_warps=4,
    narrow=TileLaunch(16, 32, 128, 4, 4, filled_by=264),
    tall=TileLaunch(64, 64, 128, 4, 3, filled_by=132),
    large=TileLaunch(64, 128, 128, 8, 3, filled_by=132),
    int8_narrow=TileLaunch(16, 32, 128, 4, 4, filled_by=264),
)
"""Fits, as compiled: 163,840 bytes at 9.0 and 98,304 at 8.x, nothing spilled (four warps spill the largest tile). Not
measured."""


@dataclass(frozen=True, slots=True)
class Launches:
    """The choices for one device."""

    decode: dict[Heads, DecodeLaunch]
    prefill: dict[Heads, PrefillLaunch]
    few_rows: FewRowsLaunch | None = None  # None: products are the library's
    moe: MoELaunch = SMALL_MOE
    weight_only: WeightOnlyLaunch = WEIGHT_ONLY


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

HOPPER = replace(
    LARGE,
    moe=HOPPER_MOE,
    few_rows=FewRowsLaunch(
        row_block_n=4,
        row_block_k=2048,
        row_num_warps=4,
        narrow=TileLaunch(16, 16, 512, 2, 4, prefetched=1024),
        tall=TileLaunch(64, 64, 128, 4, 4, prefetched=256, filled_by=128),
        wide=TileLaunch(64, 128, 64, 4, 5, prefetched=256),
        wide_from=128 * 132,
    ),
)
"""LARGE, and products of few rows as measured on an H100 under Triton 3.6."""

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
    (9, 0): {(3, 6): HOPPER},  # measured
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
    """Choose the column of the table for queries [tokens, heads, head_dim]."""
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
