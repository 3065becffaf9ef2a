"""Say which weights a folder holds, the same on every host and different for different weights. No torch.

KV is shared between workers, and found again in caches, under this name, so two fine-tunes of one model must never have
the same. Reading all bytes would take as long as loading; so it covers config.json, each file's header (names, shapes,
types, offsets) and size, and a spread sample of each tensor's bytes.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from baton.errors import ModelLoadError

SAMPLE_NBYTES = 512
SAMPLES_PER_TENSOR = 4
MAX_SAMPLES = 8_192
"""Of one file: a model of many thousand experts is sampled once a tensor."""
MAX_HEADER_NBYTES = 100 * 2**20


def model_identity(folder: Path, *, dummy_seed: int | None = None) -> str:
    """Give the fingerprint of a model's config and weights, 32 hex digits.

    `dummy_seed`: the weights are made from this seed and config.json alone.

    Raises:
        ModelLoadError: a file cannot be read.
    """
    digest = blake2b(digest_size=16, person=b"baton model")
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
        _add(digest, json.dumps(config, sort_keys=True).encode())
        if dummy_seed is not None:
            _add(digest, f"dummy {dummy_seed}".encode())
            return digest.hexdigest()
        for file in sorted(folder.glob("*.safetensors")):
            with file.open("rb") as opened:
                _add_file(digest, file, opened)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{folder}: the model cannot be identified: {error}") from None
    return digest.hexdigest()


def _add_file(digest: blake2b, file: Path, opened: BinaryIO) -> None:
    nbytes = file.stat().st_size
    header_nbytes = int.from_bytes(opened.read(8), "little")
    if not 0 < header_nbytes <= min(nbytes, MAX_HEADER_NBYTES):
        raise ModelLoadError(f"{file} is no safetensors file: its header would have {header_nbytes} bytes.")
    header: dict[str, Any] = json.loads(opened.read(header_nbytes))
    header.pop("__metadata__", None)
    tensors = sorted(header.items())
    _add(digest, json.dumps(tensors).encode() + nbytes.to_bytes(8, "little"))
    samples = SAMPLES_PER_TENSOR if len(tensors) * SAMPLES_PER_TENSOR <= MAX_SAMPLES else 1
    for _name, tensor in tensors:
        first, last = (8 + header_nbytes + int(offset) for offset in tensor["data_offsets"])
        for i in range(samples):
            at = first + (last - first - SAMPLE_NBYTES) * i // max(1, samples - 1)
            opened.seek(max(first, at))
            _add(digest, opened.read(max(0, min(SAMPLE_NBYTES, last - opened.tell()))))


def _add(digest: blake2b, part: bytes) -> None:
    digest.update(len(part).to_bytes(8, "little") + part)
