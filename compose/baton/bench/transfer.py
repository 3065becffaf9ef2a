"""`baton bench transfer`: KV transfer with all its checks, beside two bare ZeroMQ sockets in the same run."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Literal

from baton.bench.report import Report
from baton.kvtransfer.bench import Plan, measure
from baton.kvtransfer.settings import MIB

SHAPES = ((2 * MIB, 32, False), (128 << 10, 512, False), (128 << 10, 512, True))
"""Bytes of a block, blocks of a transfer, whether they lie apart: a block of an 8B model, then of the demo model."""


def run(*, rounds: int, json_file: Path | None) -> None:
    """Measure each transport and shape, and print one table."""
    report = Report("baton bench transfer")
    schemes: tuple[Literal["tcp", "ipc"], ...] = ("tcp", "ipc")
    for scheme in schemes:
        for block_nbytes, num_blocks, scattered in SHAPES:
            plan = Plan(scheme=scheme, block_nbytes=block_nbytes, num_blocks=num_blocks, scattered=scattered)
            found = measure(plan, rounds=rounds)
            report.add(
                transport=scheme,
                block=f"{block_nbytes >> 10} KiB",
                layout="scattered" if scattered else "adjacent",
                bare_GB_s=statistics.median(found.bare),
                baton_GB_s=statistics.median(found.ours),
                ratio=found.ratio,
            )
    report.show(json_file)
