"""`baton bench transfer`: KV transfer with all its checks, beside what is bare in the same run."""

from __future__ import annotations

from pathlib import Path

from baton.bench.report import Report
from baton.kvtransfer.bench.launches import launches
from baton.kvtransfer.bench.measure import Measurement, measure
from baton.kvtransfer.bench.plan import Device, Scheme, plans
from baton.kvtransfer.settings import MIB, TransferConfig
from baton.logs import LogConfig, setup_logs


def run(
    *,
    rounds: int,
    device: Device,
    only: Scheme | None,
    sockets: int | None,
    frame_mib: int | None,
    json_file: Path | None,
) -> None:
    """Measure each transport and shape, and print one table; under it where a single transfer's time goes."""
    setup_logs("bench", LogConfig(log_level="info"))
    report = Report("baton bench transfer")
    timelines = []
    config = TransferConfig(num_sockets=sockets, frame_nbytes=None if frame_mib is None else frame_mib * MIB)
    for plan in plans(device, config):
        if only in (None, plan.scheme):
            found = measure(plan, rounds=rounds)
            report.add(**_row(found))
            if plan.num_transfers == 1:
                timelines.append(f"{plan.scheme} {_layout(found)}: {found.timeline}")
    report.facts |= {"sockets": config.num_stripes, "MiB a message": config.message_nbytes / MIB}
    report.show(json_file)
    print("Milliseconds of a single transfer of 2 MiB blocks, from when it is asked for:", *timelines, sep="\n  ")
    if device == "cuda" and only in (None, "cuda_ipc"):
        print("A message's calls between GPUs:", *launches(plans(device, config)[-2]), sep="\n  ")


def _row(found: Measurement) -> dict[str, object]:
    plan = found.plan
    return {
        "transport": plan.scheme,
        "block": f"{plan.block_nbytes >> 10} KiB",
        "MB": plan.block_nbytes * plan.num_blocks / 1e6,
        "layout": _layout(found),
        "open": plan.num_transfers,
        "bare_GB_s": found.bare.rate,
        "baton_GB_s": found.ours.rate,
        "ratio": found.ratio,
        "bare_cpu_s_per_GB": found.bare.cpu_s,
        "baton_cpu_s_per_GB": found.ours.cpu_s,
        "exposed_ms": found.exposed_ms,
    }


def _layout(found: Measurement) -> str:
    return "scattered" if found.plan.scattered else "adjacent"
