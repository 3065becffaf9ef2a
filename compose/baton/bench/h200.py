"""`baton bench offline --suite h200`: the recorded workloads on this GPU, beside the peer's figures and the floors."""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from baton.bench import gpu_figures as figures
from baton.bench.floors import Model, decode_s, prefill_s, run_s
from baton.bench.kernels.measure import Ceilings, measure_ceilings
from baton.bench.known_models import LLAMA_8B, QWEN_06B
from baton.bench.offline import as_generate
from baton.bench.report import Report
from baton.bench.workloads import Generate, Workload, decode_step_ms, mixed, prefill_seconds, throughput, time_of
from baton.llm import LLM

MODELS = ("llama8b", "qwen06b")
MAX_MODEL_LEN = 33_024
"""Holds the longest prompt of the suite."""


def run(models: Iterable[str], *, repeats: int, json_file: Path | None, **settings: Any) -> None:
    """Measure each model with random weights, and print one table: ours, the peer's recorded figure, and the floors of either device.

    On another device than the peer's the verdict compares shares of the floor, which the device's own speed is not part of. A
    device's ceilings move with its heat, so they are the better of those before and after.
    """
    ceilings = [measure_ceilings()]
    found: list[tuple[str, Row]] = []
    for model in models:
        generate = _load(model, **settings)
        rows = {"llama8b": _llama_8b, "qwen06b": _qwen_06b}[model]
        for row in rows(generate, repeats):
            found.append((model, row))
            print(f"{model} {row.name}: {row.value:.4g} (vLLM {row.figure.peer:.4g})", flush=True)
        del generate
    _free()
    ceilings.append(measure_ceilings())
    device = Ceilings(
        copy_gbps=max(each.copy_gbps for each in ceilings), matmul_tflops=max(each.matmul_tflops for each in ceilings)
    )
    facts = {"copy_GB_s": round(device.copy_gbps), "matmul_TFLOP_s": round(device.matmul_tflops)}
    report = Report("baton bench offline --suite h200", facts=facts)
    for model, row in found:
        _add(report, model, row, device)
    report.show(json_file)


def run_deterministic(models: Iterable[str], *, repeats: int, json_file: Path | None, **settings: Any) -> None:
    """Measure what `--deterministic` costs: the same workloads in both modes, one after the other."""
    report = Report("baton bench offline --suite h200 --deterministic")
    for model in models:
        found: list[dict[str, float]] = []
        for deterministic in (False, True):
            generate = _load(model, deterministic=deterministic, **settings)
            found.append(_in_either_mode(generate, repeats))
            del generate
        for name, default_ms in found[0].items():
            times = found[1][name] / default_ms
            report.add(
                model=model, workload=name, unit="ms", default=default_ms, deterministic=found[1][name], times=times
            )
    report.show(json_file)


def _in_either_mode(generate: Generate, repeats: int) -> dict[str, float]:
    """Return the milliseconds of decode steps and prompts."""
    found = {f"decode, batch {batch}": decode_step_ms(generate, batch, repeats=repeats) for batch in (1, 32, 256)}
    for length in (2048, 8192):
        found[f"prefill 1 x {length}"] = 1e3 * prefill_seconds(generate, 1, length, repeats)
    return found


def _load(model: str, **settings: Any) -> Generate:
    """Make an engine with random weights, in the memory of the one before, and run it once."""
    _free()
    config = {"llama8b": LLAMA_8B, "qwen06b": QWEN_06B}[model]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        llm = LLM(
            folder,
            device="cuda",
            load_format="dummy",
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            max_model_len=MAX_MODEL_LEN,
            **settings,
        )
    generate = as_generate(llm)
    generate([[1, 2, 3, 4] * 64] * 8, [16] * 8, 0.0)
    return generate


def _free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


@dataclass(frozen=True, slots=True)
class Row:
    """One workload's outcome."""

    name: str
    figure: figures.Figure
    value: float
    floor: Callable[[Ceilings], float]
    """In the unit of the value: milliseconds, or tokens a second."""
    is_rate: bool = False


def _llama_8b(generate: Generate, repeats: int) -> Iterable[Row]:
    model = Model.of(LLAMA_8B)
    for batch in (1, 8, 32, 128, 256):
        yield _decode(generate, model, figures.LLAMA_8B_MS, batch, repeats)
    for length in (512, 2048, 8192, 32000):
        yield _prefill(generate, model, figures.LLAMA_8B_MS, length, repeats)
    name = "prefill 32 x 2048"
    value = 32 * 2048 / prefill_seconds(generate, 32, 2048, repeats)
    yield Row(
        name, figures.LLAMA_8B_RATE[name], value, lambda device: 2048 / prefill_s(model, device, [2048]), is_rate=True
    )
    for name, workload in (("offline 512 x (1024, 256)", throughput()), ("mix of 256", mixed())):
        yield _rate(generate, model, name, figures.LLAMA_8B_RATE[name], workload, repeats)


def _qwen_06b(generate: Generate, repeats: int) -> Iterable[Row]:
    model, name = Model.of(QWEN_06B), "mix of 256"
    yield _rate(generate, model, name, figures.QWEN_06B_RATE[name], mixed(), repeats)
    yield _decode(generate, model, figures.QWEN_06B_MS, 1, repeats)


def _decode(generate: Generate, model: Model, targets: dict[str, figures.Figure], batch: int, repeats: int) -> Row:
    name = f"decode, batch {batch}"
    value = decode_step_ms(generate, batch, repeats=repeats)
    return Row(name, targets[name], value, lambda device: 1e3 * decode_s(model, device, batch, 1024))


def _prefill(generate: Generate, model: Model, targets: dict[str, figures.Figure], length: int, repeats: int) -> Row:
    name = f"prefill 1 x {length}"
    value = 1e3 * prefill_seconds(generate, 1, length, repeats)
    return Row(name, targets[name], value, lambda device: 1e3 * prefill_s(model, device, [length]))


def _rate(generate: Generate, model: Model, name: str, figure: figures.Figure, workload: Workload, repeats: int) -> Row:
    tokens = workload.num_output_tokens
    seconds = statistics.median(time_of(generate, workload) for _ in range(repeats))
    return Row(name, figure, tokens / seconds, lambda device: tokens / run_s(model, device, workload), is_rate=True)


def _add(report: Report, model: str, row: Row, device: Ceilings) -> None:
    value, figure = row.value, row.figure
    of_the_floor = _speed(row, value, row.floor(device))
    peer_of_its_floor = _speed(row, figure.peer, row.floor(figures.PEER_DEVICE))
    speed_of_vllm = _speed(row, value, figure.peer)
    if torch.cuda.get_device_name() == figures.PEER_DEVICE_NAME:
        compared, stretched = speed_of_vllm, _speed(row, value, figure.stretch) >= 1
    else:
        compared = of_the_floor / peer_of_its_floor
        stretched = of_the_floor >= _speed(row, figure.stretch, row.floor(figures.PEER_DEVICE))
    report.add(
        model=model,
        workload=row.name,
        unit="tok/s" if row.is_rate else "ms",
        baton=value,
        vllm_on_h200=figure.peer,
        speed_of_vllm=speed_of_vllm,
        floor=row.floor(device),
        of_the_floor=of_the_floor,
        vllm_of_its_floor=peer_of_its_floor,
        verdict="stretch" if stretched else "ok" if compared * figure.slack >= 1 else "short",
    )


def _speed(row: Row, value: float, reference: float) -> float:
    """Return how many times as fast as the reference a value is."""
    return value / reference if row.is_rate else reference / value
