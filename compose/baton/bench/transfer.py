"""`baton bench transfer`: KV transfer with all its checks, beside two bare ZeroMQ sockets in the same run."""

from __future__ import annotations

from pathlib import Path

from baton.bench.report import Report
from baton.kvtransfer.bench import Device, measure, plans
from baton.logs import LogConfig, setup_logs


def run(*, rounds: int, device: Device, json_file: Path | None) -> None:
    """Measure each transport and shape, and print one table."""
    setup_logs("bench", LogConfig(log_level="warning"))
    report = Report("baton bench transfer")
    for plan in plans(device):
        found = measure(plan, rounds=rounds)
        report.add(
            transport=plan.scheme,
            block=f"{plan.block_nbytes >> 10} KiB",
            layout="scattered" if plan.scattered else "adjacent",
            bare_GB_s=found.bare.rate,
            baton_GB_s=found.ours.rate,
            ratio=found.ratio,
            bare_cpu_s_per_GB=found.bare.cpu_s,
            baton_cpu_s_per_GB=found.ours.cpu_s,
        )
    report.show(json_file)
