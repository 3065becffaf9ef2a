"""Experts of a checkpoint: both layouts, what is missing, and numbers that cannot be."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.stepping import Stepper, Stream

from baton.errors import ModelLoadError
from baton.models import loader
from baton.models.checkpoint import SINGLE
from baton.models.config import make_spec
from baton.models.loader import load_model

Checkpoint = Callable[[str], Path]


def _logits(folder: Path) -> torch.Tensor:
    stepper, stream = Stepper(load_model(folder, dtype="float32", progress=False)), Stream(list(range(3, 40)))
    stepper.step((stream, 37))
    return torch.stack(stream.logits)


@pytest.mark.parametrize(
    ("family", "parts"), [("mixtral", ("w1", "w3", "w2")), ("qwen3-moe", ("gate_proj", "up_proj", "down_proj"))]
)
def test_stacks_of_experts_load_as_experts_apart_do(
    family: str, parts: tuple[str, str, str], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint(family), tmp_path / "stacked"))
    tensors = load_file(folder / SINGLE)
    experts = sorted({match[1] for name in tensors if (match := re.match(r"(.*\.experts)\.\d+\.", name))})
    for name in experts:
        apart = [
            [tensors.pop(f"{name}.{at}.{part}.weight") for at in range(8) if f"{name}.{at}.{part}.weight" in tensors]
            for part in parts
        ]
        gate, up, down = map(torch.stack, apart)
        tensors[f"{name}.gate_up_proj"], tensors[f"{name}.down_proj"] = torch.cat((gate, up), 1), down
    save_file(tensors, folder / SINGLE)
    assert torch.equal(_logits(folder), _logits(tiny_checkpoint(family)))


def test_missing_experts_are_named_in_one_error_before_memory_is_taken(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("mixtral"), tmp_path / "lost"))
    tensors = load_file(folder / SINGLE)
    kept = {name: tensor for name, tensor in tensors.items() if not re.search(r"layers\.[12].*experts\.[03]\.", name)}
    save_file(kept, folder / SINGLE)
    monkeypatch.setattr(loader, "load_weights", None)
    with pytest.raises(ModelLoadError) as refused:
        load_model(folder, progress=False)
    assert "lacks 12 tensors (layers.1.block_sparse_moe.experts.{0,3}, layers.2.block_sparse_moe.experts.{0,3})" in str(
        refused.value
    )


def test_both_layouts_at_once_are_refused(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("mixtral"), tmp_path / "both"))
    tensors = load_file(folder / SINGLE)
    name = "model.layers.1.block_sparse_moe.experts.down_proj"
    save_file(tensors | {name: torch.zeros(5, 64, 96)}, folder / SINGLE)
    with pytest.raises(ModelLoadError, match=rf"has 1 tensor \({name}\), which config.json does not describe"):
        load_model(folder, progress=False)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"num_experts_per_tok": 9}, "num_experts_per_tok=9; it must be at most the number of experts, 8"),
        ({"mlp_only_layers": ["first"]}, "mlp_only_layers"),
        ({"num_local_experts": 0}, "num_local_experts=0"),
        ({"moe_intermediate_size": None}, "lacks moe_intermediate_size"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
    ],
    ids=["chosen", "dense layers", "experts", "size", "activation"],
)
def test_numbers_that_cannot_be_are_refused(
    changed: dict[str, object], named: str, tiny_checkpoint: Checkpoint
) -> None:
    raw = json.loads((tiny_checkpoint("qwen3-moe") / "config.json").read_text())
    with pytest.raises(ModelLoadError, match=re.escape(named)):
        make_spec(raw | changed)


def test_only_layers_that_config_json_makes_sparse_have_experts(tiny_checkpoint: Checkpoint) -> None:
    raw = json.loads((tiny_checkpoint("qwen3-moe-mixed") / "config.json").read_text())
    assert [type(layer.mlp).__name__ for layer in make_spec(raw).layers] == ["MLPSpec", "MoESpec", "MLPSpec"]
