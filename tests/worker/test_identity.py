"""The name under which KV is shared: equal for equal weights, another for any others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.tiny_models import save_tiny

from baton.errors import ModelLoadError
from baton.models.identity import model_identity

Checkpoint = Callable[[str], Path]


@pytest.fixture
def copy(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "somewhere else"))


def test_a_copy_in_another_folder_has_the_same(tiny_checkpoint: Checkpoint, copy: Path) -> None:
    assert model_identity(copy) == model_identity(tiny_checkpoint("llama"))


def test_other_weights_have_another(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert model_identity(save_tiny("llama", tmp_path / "b", seed=1)) != model_identity(tiny_checkpoint("llama"))


def test_a_change_of_one_tensor_gives_another(copy: Path) -> None:
    before = model_identity(copy)
    weights = copy / "model.safetensors"
    header_nbytes = int.from_bytes(weights.read_bytes()[:8], "little")
    header = json.loads(weights.read_bytes()[8 : 8 + header_nbytes])
    name = "model.layers.2.mlp.down_proj.weight"
    first, last = header[name]["data_offsets"]
    content = bytearray(weights.read_bytes())
    tensor = slice(8 + header_nbytes + first, 8 + header_nbytes + last)
    content[tensor] = bytes(byte ^ 1 for byte in content[tensor])
    weights.write_bytes(content)
    assert model_identity(copy) != before


def test_another_config_gives_another(copy: Path) -> None:
    before = model_identity(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config, indent=7))
    assert model_identity(copy) == before
    (copy / "config.json").write_text(json.dumps({**config, "rope_theta": 12345.0}))
    assert model_identity(copy) != before


def test_dummy_weights_are_known_by_their_seed(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert model_identity(copy, dummy_seed=0) == model_identity(copy, dummy_seed=0)
    assert model_identity(copy, dummy_seed=0) != model_identity(copy, dummy_seed=1)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{]"])
def test_a_damaged_file_is_said(copy: Path, content: bytes) -> None:
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelLoadError):
        model_identity(copy)
