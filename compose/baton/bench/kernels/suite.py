"""`baton bench kernels`: every operation on the GPU at hand, and the table that kernels/README.md holds."""

from __future__ import annotations

import itertools
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

import baton.kernels.launch
from baton.bench.kernels import attention, few_rows_linear, moe, quantized_linear, rms_norm, rotary, sample, silu_mul
from baton.bench.kernels.measure import Ceilings, Row, measure_ceilings
from baton.bench.report import Report
from baton.errors import ConfigError
from baton.kernels.launch import INTERPRET, triton_version

BENCHES: dict[str, Callable[[], Iterator[Row]]] = {
    "few_rows_linear": few_rows_linear.rows,
    "quantized_linear": quantized_linear.rows,
    "rms_norm": rms_norm.rows,
    "rotary": rotary.rows,
    "silu_mul": silu_mul.rows,
    "decode_attention": attention.decode_rows,
    "prefill_attention": attention.chunk_rows,
    "moe": moe.rows,
    "sample": sample.rows,
}
SWEEPS: dict[str, Callable[[], Iterator[tuple[str, float, str, object]]]] = {
    "attention": attention.sweep,
    "moe": moe.sweep,
    "quantized_linear": quantized_linear.sweep,
}
BEGIN, END = "<!-- measured by `baton bench kernels --write` on an ", "<!-- end of what was measured -->"
"""Around a device's table; the first is followed by the device's name and ` -->`."""


def run(only: Sequence[str], *, write: bool, json_file: Path | None) -> int:
    """Measure, print one table, and write it where asked; returns the number of operations that failed."""
    unknown = [name for name in only if name not in BENCHES]
    if unknown:
        raise ConfigError(f"--only {unknown[0]} is not an operation; known: {', '.join(BENCHES)}.")
    if write and only:
        raise ConfigError("--write replaces the whole table: leave out --only.")
    readme = _readme() if write else None
    _require_gpu()
    ceilings = measure_ceilings()
    rows, num_failed = _measure(only or list(BENCHES))
    facts = {
        "triton": triton_version(),
        "copy_GB_s": round(ceilings.copy_gbps),
        "matmul_TFLOP_s": round(ceilings.matmul_tflops),
    }
    report = Report("baton bench kernels", facts=facts)
    for row in rows:
        report.add(
            op=row.op,
            shape=row.shape,
            us=row.us,
            achieved=row.achieved,
            unit=row.unit,
            of_peak=row.share(ceilings),
            beside=row.beside,
        )
    report.show(json_file)
    if readme is not None and not num_failed:
        readme.write_text(with_table(readme.read_text(), rows, ceilings, torch.cuda.get_device_name()))
        print(f"wrote {readme}")
    return num_failed


def run_sweep(only: Sequence[str]) -> None:
    """Time each launch that may be a device's entry in kernels/launch_table.py."""
    unknown = [name for name in only if name not in SWEEPS]
    if unknown:
        raise ConfigError(f"--only {unknown[0]} has no other launches to time; known: {', '.join(SWEEPS)}.")
    _require_gpu()
    for shape, rate, unit, launch in itertools.chain(*(SWEEPS[name]() for name in only or SWEEPS)):
        print(f"{shape}: {rate:.0f} {unit}, {launch}", flush=True)


def with_table(text: str, rows: Iterable[Row], ceilings: Ceilings, device: str) -> str:
    """Return the text with these rows in place of the device's table; a device's first one goes before the others."""
    begin = f"{BEGIN}{device} -->"
    if begin in text:
        before, rest = text.split(begin)
        after = rest.split(END, 1)[1]
    else:
        at = text.index(BEGIN)
        before, after = text[:at], f"\n\n{text[at:]}"
    lines = [
        f"One {device}, torch {torch.__version__}, Triton {triton_version()}, bf16. Each figure is the median of six replays of a CUDA graph over data larger than the cache.",
        f"Ceilings of the same run: copy {ceilings.copy_gbps:.0f} GB/s (read and written), matrix product "
        f"{ceilings.matmul_tflops:.0f} TFLOP/s (8192 cubed, random data). Bytes are those that must move, once.",
        "",
        "| op | shape | us | achieved | of peak | beside (times ours) |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row.op} | {row.shape} | {row.us:.1f} | {row.achieved:.0f} {row.unit} "
            f"| {100 * row.share(ceilings):.0f} % | {row.beside} |"
            for row in rows
        ),
    ]
    return "\n".join([before + begin, *lines, END]) + after


def _measure(names: Iterable[str]) -> tuple[list[Row], int]:
    rows: list[Row] = []
    num_failed = 0
    for name in names:
        begin = time.perf_counter()
        try:
            for row in BENCHES[name]():
                print(f"{row.op}, {row.shape}: {row.us:.1f} us, {row.achieved:.0f} {row.unit}", flush=True)
                rows.append(row)
        except Exception:  # one operation's failure must not cost the others' figures
            traceback.print_exc()
            num_failed += 1
        print(f"{name}: {time.perf_counter() - begin:.1f} s", flush=True)
        torch.cuda.empty_cache()
    return rows, num_failed


def _require_gpu() -> None:
    if not torch.cuda.is_available():
        raise ConfigError("baton bench kernels needs a CUDA GPU, and torch sees none here.")
    if INTERPRET:
        raise ConfigError(
            "TRITON_INTERPRET=1 runs the kernels in Python, which measures nothing. Unset it for baton bench kernels."
        )


def _readme() -> Path:
    """Find kernels/README.md beside the kernels of this checkout."""
    path = Path(baton.kernels.launch.__file__).parents[2] / "README.md"
    if not path.is_file() or BEGIN not in path.read_text():
        raise ConfigError("--write needs a checkout of Baton: an installed package has no kernels/README.md.")
    return path
