"""The weight files of a checkpoint: which they are, which tensors they hold, and whether they are whole.

A safetensors file is 8 bytes of header length (little-endian), a JSON header {name: {dtype, shape,
data_offsets}}, and the tensors' bytes without gaps (https://github.com/huggingface/safetensors#format). So
every length can be checked before a byte of a tensor is read: a truncated download, a Git LFS pointer or a
missing shard is found here. Knows no model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from baton.errors import ModelLoadError
from baton.models.fields import read_json

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES = dict(FLOATS)
"""By safetensors' name; a form of quantized weights adds what it stores."""
MAX_HEADER_NBYTES = 100_000_000  # the limit of the safetensors library
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
FETCH_AGAIN = "Delete the file and fetch the checkpoint again."


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where the bytes of one tensor lie."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # from the start of the file
    nbytes: int


def read_entries(folder: Path) -> dict[str, TensorEntry]:
    """List all tensors of a checkpoint by name, in the order of their bytes, file by file.

    Raises:
        ModelLoadError: weights are missing, pickled, truncated or inconsistent with their index.
    """
    files, weight_map = find_weights(folder)
    entries: dict[str, TensorEntry] = {}
    for file in files:
        for entry in read_header(file):
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
    if len(files) == 1 and not re.search(r"-\d+-of-\d+\.safetensors$", files[0].name):
        return
    shards = [re.search(r"-(\d+)-of-(\d+)\.safetensors$", file.name) for file in files]
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


# ------------------------------------------------------------------------------------------------------------
# One file


def read_header(file: Path) -> list[TensorEntry]:
    """Read and check the header of one safetensors file; entries come in the order of their bytes."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            header, data_start = parse_header(stream, file)
    except OSError as error:
        raise ModelLoadError(f"{file} cannot be read: {error.strerror}.") from None
    try:
        entries = [_parse_entry(file, name, value, data_start) for name, value in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(file, error) from None
    entries.sort(key=lambda entry: entry.offset)
    _check_layout(file, entries, size, data_start)
    return entries


def parse_header(stream: BinaryIO, file: Path) -> tuple[dict[str, Any], int]:
    """Read what a file says of its tensors, {name: {dtype, shape, data_offsets}}, and where their bytes start."""
    size = file.stat().st_size
    start = stream.read(8)
    header_nbytes = int.from_bytes(start, "little")
    if start.startswith(b"version"):
        raise ModelLoadError(
            f"{file} is a Git LFS pointer, not the weights themselves. Run `git lfs pull` in its folder."
        )
    if len(start) < 8 or not 2 <= header_nbytes <= min(MAX_HEADER_NBYTES, size - 8):
        raise ModelLoadError(
            f"{file} is not a whole safetensors file: of its {size} bytes a header of {header_nbytes} is announced. "
            f"{FETCH_AGAIN}"
        )
    try:
        header: dict[str, Any] = json.loads(stream.read(header_nbytes))
        header.pop("__metadata__", None)
    except (ValueError, TypeError, AttributeError) as error:
        raise _damaged(file, error) from None
    return header, 8 + header_nbytes


def _damaged(file: Path, error: Exception) -> ModelLoadError:
    return ModelLoadError(f"{file}: the safetensors header is damaged ({error}). {FETCH_AGAIN}")


def _parse_entry(file: Path, name: str, value: Mapping[str, Any], data_start: int) -> TensorEntry:
    if value["dtype"] not in DTYPES:
        raise ModelLoadError(
            f"{file}: tensor {name!r} has dtype {value['dtype']}; Baton loads {', '.join(DTYPES)}. "
            "Take the unquantized checkpoint of this model."
        )
    dtype = DTYPES[value["dtype"]]
    shape = tuple(int(length) for length in value["shape"])
    begin, end = (int(offset) for offset in value["data_offsets"])
    expected = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or end - begin != expected:
        raise ModelLoadError(
            f"{file}: tensor {name!r} of shape {list(shape)} and dtype {value['dtype']} needs {expected} bytes, and the "
            f"header gives it {end - begin}. {FETCH_AGAIN}"
        )
    return TensorEntry(name, file, dtype, shape, data_start + begin, expected)


def _check_layout(file: Path, entries: list[TensorEntry], size: int, data_start: int) -> None:
    """Check that the tensors fill the file exactly, without gap or overlap."""
    end = data_start
    for entry in entries:
        if entry.offset != end:
            raise ModelLoadError(
                f"{file}: tensor {entry.name!r} starts at byte {entry.offset}, and the one before it ends at {end}. "
                f"{FETCH_AGAIN}"
            )
        end += entry.nbytes
    if size != end:
        raise ModelLoadError(
            f"{file} has {size} bytes, and its header describes {end}: it is "
            f"{'truncated' if size < end else 'longer than its tensors'}. {FETCH_AGAIN}"
        )
