"""Say which weights a folder holds, the same on every host and different for different weights.

KV is shared between workers, and found again in caches, under this name, so two fine-tunes of one model must never have
the same. Reading all bytes would take as long as loading; so it covers config.json, and each tensor's name, type, shape
and a spread sample of its bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from baton.errors import ModelLoadError
from baton.model_config import read_config
from baton.models.checkpoint import open_weights

SAMPLE_NBYTES = 512
SAMPLES_PER_TENSOR = 4
MAX_SAMPLES = 8_192
"""Of one file: a model of many thousand experts is sampled once a tensor."""


def model_identity(
    folder: Path,
    *,
    dummy_seed: int | None = None,
    quantization: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> str:
    """Compute the fingerprint of a model's config and weights, 32 hex digits.

    `dummy_seed`: the weights are made from this seed and config.json alone. `quantization`: how they are quantized while
    they are read.

    Raises:
        ModelLoadError: a file cannot be read.
    """
    digest = blake2b(digest_size=16, person=b"baton model")
    try:
        config = read_config(folder, overrides)
        _add(digest, json.dumps(config, sort_keys=True).encode())
        if quantization is not None:
            _add(digest, f"quantized {quantization}".encode())
        if dummy_seed is not None:
            _add(digest, f"dummy {dummy_seed}".encode())
            return digest.hexdigest()
        for file in sorted(folder.glob("*.safetensors")):
            with open_weights(file) as weights:
                _add_file(digest, weights)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{folder}: the model cannot be identified: {error}") from None
    return digest.hexdigest()


def _add_file(digest: blake2b, weights: Any) -> None:
    names = sorted(weights.keys())
    samples = SAMPLES_PER_TENSOR if len(names) * SAMPLES_PER_TENSOR <= MAX_SAMPLES else 1
    for name in names:
        tensor = weights.get_tensor(name)
        _add(digest, f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        content = tensor.reshape(-1).view(torch.uint8)
        for i in range(samples):
            at = max(0, (len(content) - SAMPLE_NBYTES) * i // max(1, samples - 1))
            _add(digest, content[at : at + SAMPLE_NBYTES].numpy().tobytes())


def _add(digest: blake2b, part: bytes) -> None:
    digest.update(len(part).to_bytes(8, "little") + part)
