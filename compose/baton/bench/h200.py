"""`baton bench offline --suite h200`: the recorded workloads on this GPU, beside the peer's figures and the floors."""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from baton.bench import gpu_figures as figures
from baton.bench.offline import as_generate
from baton.bench.report import Report
from baton.bench.workloads import (
    Generate,
    decode_step_ms,
    mixed,
    prefill_seconds,
    throughput,
    time_of,
)
from baton.llm import LLM

MODELS = ("llama8b", "qwen06b")
MAX_MODEL_LEN = 33_024
"""Holds the longest prompt of the suite."""


def run(models: Iterable[str], *, repeats: int, json_file: Path | None, **settings: Any) -> None:
    """Measure each model with random weights, and print one table."""
    report = Report("baton bench offline --suite h200")
    for model in models:
        generate = _load(model, **settings)
        rows = {"llama8b": _llama_8b, "qwen06b": _qwen_06b}[model]
        for name, figure, value, is_rate in rows(generate, repeats):
            _add(report, model, name, figure, value, is_rate)
        del generate
    report.show(json_file)


def run_deterministic(
    models: Iterable[str], *, repeats: int, json_file: Path | None, **settings: Any
) -> None:
    """Measure what `--deterministic` costs: the same workloads in both modes, one after the other."""
    report = Report("baton bench offline --suite h200 --deterministic")
    for model in models:
        found: list[dict[str, float]] = []
        for deterministic in (False, True):
            generate = _load(model, deterministic=deterministic, **settings)
            found.append(_in_either_mode(generate, repeats))
            del generate
            gc.collect()
            torch.cuda.empty_cache()
        for name, default_ms in found[0].items():
            times = found[1][name] / default_ms
            report.add(
                model=model,
                workload=name,
                unit="ms",
                default=default_ms,
                deterministic=found[1][name],
                times=times,
            )
    report.show(json_file)


def _in_either_mode(generate: Generate, repeats: int) -> dict[str, float]:
    """Give the milliseconds of decode steps and prompts."""
    found = {
        f"decode, batch {batch}": decode_step_ms(generate, batch, repeats=repeats) for batch in (1, 32, 256)
    }
    for length in (2048, 8192):
        found[f"prefill 1 x {length}"] = 1e3 * prefill_seconds(generate, 1, length, repeats)
    return found


def _load(model: str, **settings: Any) -> Generate:
    """Make an engine with random weights, and run it once."""
    config = {"llama8b": figures.LLAMA_8B, "qwen06b": figures.QWEN_06B}[model]
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


Row = tuple[str, figures.Figure, float, bool]


def _llama_8b(generate: Generate, repeats: int) -> Iterable[Row]:
    for batch in (1, 8, 32, 128, 256):
        name = f"decode, batch {batch}"
        yield name, figures.LLAMA_8B_MS[name], decode_step_ms(generate, batch, repeats=repeats), False
    for length in (512, 2048, 8192, 32000):
        name = f"prefill 1 x {length}"
        yield name, figures.LLAMA_8B_MS[name], 1e3 * prefill_seconds(generate, 1, length, repeats), False
    name = "prefill 32 x 2048"
    yield name, figures.LLAMA_8B_RATE[name], 32 * 2048 / prefill_seconds(generate, 32, 2048, repeats), True
    name = "offline 512 x (1024, 256)"
    yield name, figures.LLAMA_8B_RATE[name], _rate(generate, throughput, repeats), True
    name = "mix of 256"
    yield name, figures.LLAMA_8B_RATE[name], _rate(generate, mixed, repeats), True


def _qwen_06b(generate: Generate, repeats: int) -> Iterable[Row]:
    name = "mix of 256"
    yield name, figures.QWEN_06B_RATE[name], _rate(generate, mixed, repeats), True
    name = "decode, batch 1"
    yield name, figures.QWEN_06B_MS[name], decode_step_ms(generate, 1, repeats=repeats), False


def _rate(generate: Generate, workload: Callable[[], Any], repeats: int) -> float:
    chosen = workload()
    seconds = statistics.median(time_of(generate, chosen) for _ in range(repeats))
    return float(chosen.num_output_tokens / seconds)


def _add(report: Report, model: str, name: str, figure: figures.Figure, value: float, is_rate: bool) -> None:
    speed = value / figure.peer if is_rate else figure.peer / value
    report.add(
        model=model,
        workload=name,
        unit="tok/s" if is_rate else "ms",
        baton=value,
        vllm=figure.peer,
        speed_of_vllm=speed,
        floor=figure.floor,
        of_the_floor=value / figure.floor if is_rate else figure.floor / value,
        verdict="stretch"
        if _reaches(value, figure.stretch, is_rate)
        else "ok"
        if speed * figure.slack >= 1
        else "short",
    )
    print(f"{model} {name}: {value:.4g} (vLLM {figure.peer:.4g})", flush=True)


def _reaches(value: float, target: float, is_rate: bool) -> bool:
    return value >= target if is_rate else value <= target
