"""How fast weights are loaded, beside plain reads of the same files: `os.preadv` by as many threads, into new memory.

The checkpoint is a Llama of random weights of a stated size, written for this and removed. Files are read once before,
so that both find them in the page cache where they fit; `--cold` drops them from it before each round instead.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file

from baton.bench.report import Report
from baton.models.checkpoint import INDEX, read_entries
from baton.models.config import read_spec
from baton.models.loader import build, load_model, outline
from baton.models.ops import FASTEST
from baton.models.reading import NUM_THREADS
from baton.models.weights import load_weights, match

_READ_NBYTES = 8 << 20
_LAYER = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "num_key_value_heads": 8}
_LAYER_PARAMETERS = 2048 * 128 * (2 * 16 + 2 * 8) + 3 * 2048 * 5632
_VOCAB_SIZE = 16_384


def run(*, gib: float, shards: int, rounds: int, device: str, folder: Path | None, cold: bool) -> Report:
    """Measure, and print; each round takes the ways in turn, and the medians count."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="baton-load-") as made:
        checkpoint = Path(made)
        write_checkpoint(checkpoint, int(gib * 2**30), shards)
        files = sorted(checkpoint.glob("*.safetensors"))
        nbytes = sum(file.stat().st_size for file in files)
        ways: dict[str, Callable[[], object]] = {
            f"plain reads, {NUM_THREADS} threads": lambda: _read_plainly(files),
            "weights into parameters": lambda: _load(checkpoint, torch.device(device)),
            "load_model, all of it": lambda: load_model(checkpoint, device=device, dtype="bfloat16", progress=False),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            way()
        for _ in range(rounds):
            for name, way in ways.items():
                if cold:
                    _drop(files)
                begun = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - begun)
    report = Report(f"loading {nbytes / 2**30:.2f} GiB of bf16 in {len(files)} files to {device}")
    report.facts = {"page_cache": "dropped before each" if cold else "warm", "rounds": rounds}
    floor = statistics.median(next(iter(seconds.values())))
    for name, times in seconds.items():
        median = statistics.median(times)
        report.add(way=name, s=median, GB_s=nbytes / median / 1e9, share_of_floor=f"{floor / median:.0%}")
    return report


def write_checkpoint(folder: Path, nbytes: int, num_shards: int) -> None:
    """Write a Llama of about so many bytes, in so many files."""
    layers = max(1, round((nbytes / 2 - 2 * _VOCAB_SIZE * 2048) / _LAYER_PARAMETERS))
    config = {
        **_LAYER,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "vocab_size": _VOCAB_SIZE,
        "max_position_embeddings": 4096,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    targets = outline(read_spec(folder), torch.bfloat16).parameters.targets
    names = list(targets)
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = names[shard * len(names) // num_shards : (shard + 1) * len(names) // num_shards]
        # random bits of small numbers: no page of zeros, which a file system may leave out
        save_file({name: torch.rand(targets[name].shape).bfloat16() for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def _load(folder: Path, device: torch.device) -> None:
    """Take memory and read, as `load_model` does, without what it does to the weights then."""
    spec = read_spec(folder)
    model = build(spec, torch.bfloat16, device, FASTEST)
    load_weights(model.parameters, match(model.parameters, read_entries(folder), str(folder)), progress=False)


def _read_plainly(files: list[Path]) -> None:
    """Read all bytes into new memory, the parts of files shared among threads."""
    parts = [(file, at) for file in files for at in range(0, file.stat().st_size, _READ_NBYTES)]
    sizes = [min(_READ_NBYTES, file.stat().st_size - at) for file, at in parts]
    memory = [torch.empty(size, dtype=torch.uint8).numpy() for size in sizes]
    descriptors = {file: os.open(file, os.O_RDONLY) for file in files}

    def read(i: int) -> None:
        (file, at), view = parts[i], memoryview(memory[i])  # type: ignore[arg-type]
        done = 0
        while done < len(view):
            done += os.preadv(descriptors[file], [view[done:]], at + done)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        list(pool.map(read, range(len(parts))))
    for descriptor in descriptors.values():
        os.close(descriptor)


def _drop(files: list[Path]) -> None:
    """Drop files from the page cache, which the system may leave undone."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
