"""The weight files of a checkpoint: which they are, which tensors they hold, and whether they are whole.

A truncated download, a Git LFS pointer or a missing shard is found here, before a byte of a tensor is read. Knows no
model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from baton.errors import ModelLoadError
from baton.foreign_model import CONSOLIDATED
from baton.model_folder import read_json

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES = FLOATS | {
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
}
"""By safetensors' name: floats, and what forms of quantized weights store."""
COUNTED = "embeddings.position_ids"
"""A table of 0, 1, 2 and so on, which old versions of transformers saved with encoders."""
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
FETCH_AGAIN = "Delete the file and fetch the checkpoint again."


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Where its bytes begin in the file."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@contextmanager
def open_weights(file: Path) -> Iterator[Any]:
    """Map a safetensors file into memory, as `safe_open`; a part of a tensor is read when it is used.

    The library refuses a file whose tensors do not fill it exactly. One that is cut while it is mapped ends the process
    (SIGBUS), as in every loader that maps files.

    Raises:
        ModelLoadError: the file is not whole or cannot be read.
    """
    try:
        with safe_open(file, "pt") as weights:
            yield weights
    except OSError as error:
        raise ModelLoadError(f"{file} cannot be read: {error}.") from None
    except SafetensorError as error:
        with file.open("rb") as stream:
            if stream.read(7) == b"version":
                raise ModelLoadError(
                    f"{file} is a Git LFS pointer, not the weights themselves. Run `git lfs pull` in its folder."
                ) from None
        raise ModelLoadError(
            f"{file} is truncated or damaged; of its {file.stat().st_size} bytes safetensors says: {error}. "
            f"{FETCH_AGAIN}"
        ) from None


def read_entries(folder: Path) -> dict[str, TensorEntry]:
    """List all tensors of a checkpoint by name, in the order of their bytes, file by file.

    Raises:
        ModelLoadError: weights are missing, pickled, truncated or inconsistent with their index.
    """
    files, weight_map = find_weights(folder)
    entries: dict[str, TensorEntry] = {}
    for file in files:
        for entry in _read_file(file):
            if entry.name in entries:
                raise ModelLoadError(
                    f"{file}: tensor {entry.name!r} is also in {entries[entry.name].file.name}. {FETCH_AGAIN}"
                )
            entries[entry.name] = entry
    for name, file_name in weight_map.items():
        if name not in entries or entries[name].file.name != file_name:
            raise ModelLoadError(
                f"{folder / INDEX} says that {name!r} is in {file_name}, and it is not. The files are of different "
                "versions: fetch the checkpoint again, all files of one revision."
            )
    return entries


def _read_file(file: Path) -> list[TensorEntry]:
    entries = []
    with open_weights(file) as weights:
        begin, header = _read_header(file)
        for name in weights.offset_keys():
            if name.endswith(COUNTED):
                continue
            tensor = weights.get_slice(name)
            if tensor.get_dtype() not in DTYPES:
                raise ModelLoadError(
                    f"{file}: tensor {name!r} has dtype {tensor.get_dtype()}; Baton loads {', '.join(DTYPES)}. "
                    "Take the unquantized checkpoint of this model."
                )
            offset = begin + header[name]["data_offsets"][0]
            entries.append(TensorEntry(name, file, DTYPES[tensor.get_dtype()], tuple(tensor.get_shape()), offset))
    return entries


def _read_header(file: Path) -> tuple[int, dict[str, Any]]:
    """Read a header that the library has found good; return where the tensors begin, too."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(size))
    return 8 + size, header


def find_weights(folder: Path) -> tuple[list[Path], Mapping[str, str]]:
    """Find the weight files of a folder, and the index {tensor: file name} where there is one."""
    if (folder / INDEX).is_file():
        weight_map = read_weight_map(folder / INDEX)
        files = [folder / name for name in sorted(set(weight_map.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ModelLoadError(
                f"{folder}: {len(missing)} of {len(files)} weight files are missing: {', '.join(missing[:4])}"
                f"{', ...' if len(missing) > 4 else ''}. Fetch the checkpoint again."
            )
        return files, weight_map
    if (folder / SINGLE).is_file():
        return [folder / SINGLE], {}
    # Mistral's own format lies beside the usual one, with other names for the same tensors.
    others = sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("consolidated"))
    if not others:
        raise ModelLoadError(_no_weights(folder))
    _check_shard_names(folder, others)
    return others, {}


def read_weight_map(index: Path) -> dict[str, str]:
    """Read {tensor: file name} from the index of a sharded checkpoint."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadError(f"{index} has no weight_map. {FETCH_AGAIN}")
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise ModelLoadError(
                f"{index}: weight_map[{name!r}]={file_name!r} is not the name of a file beside it. {FETCH_AGAIN}"
            )
        if not file_name.endswith(".safetensors"):
            raise ModelLoadError(
                f"{index}: weight_map[{name!r}]={file_name!r} is not safetensors, the only format that Baton loads."
            )
    return weight_map


def _check_shard_names(folder: Path, files: list[Path]) -> None:
    """Without an index, the names of several files must say themselves that none is missing."""
    shards = [re.search(r"-(\d+)-of-(\d+)\.safetensors$", file.name) for file in files]
    if shards == [None]:
        return
    totals = {int(shard[2]) for shard in shards if shard}
    if None in shards or len(totals) != 1:
        raise ModelLoadError(
            f"{folder} has {len(files)} safetensors files and no {INDEX}, so which belong together is unknown: "
            f"{', '.join(file.name for file in files[:4])}. Fetch the checkpoint again, with its index."
        )
    absent = set(range(1, totals.pop() + 1)) - {int(shard[1]) for shard in shards if shard}
    if absent:
        raise ModelLoadError(
            f"{folder}: weight files {', '.join(map(str, sorted(absent)[:8]))} of {len(files) + len(absent)} are "
            "missing. Fetch the checkpoint again."
        )


def _no_weights(folder: Path) -> str:
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED)
    if pickled:
        return no_safetensors(str(folder), pickled)
    if any(folder.glob("consolidated*.safetensors")):
        return f"{folder} {CONSOLIDATED}"
    if list(folder.glob("*.gguf")):
        return f"{folder} has weights in GGUF; Baton loads safetensors only. Take the model's original checkpoint."
    return (
        f"{folder} has config.json but no *.safetensors file. Fetch the weights, or give load_format='dummy' for "
        "random ones."
    )


def no_safetensors(source: str, pickled: list[str]) -> str:
    """Say why a checkpoint with only pickled weights is refused, and how to convert it."""
    return (
        f"{source} has its weights only in pickled or foreign files ({', '.join(pickled[:4])}). Unpickling runs code "
        "from the file, so Baton loads safetensors only. Convert it once, where you trust it, with transformers: "
        "AutoModelForCausalLM.from_pretrained(model).save_pretrained(folder); or take a revision that has safetensors "
        "(often refs/pr/N on the hub)."
    )
