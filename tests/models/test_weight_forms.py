"""A form of quantized weights is one class and one entry of the registry; loading, joining and sharing are there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tests.models.stepping import Stepper, Stream
from torch import Tensor

from baton.errors import ModelLoadError
from baton.models import weight_forms
from baton.models.checkpoint import SINGLE, read_entries
from baton.models.linear import Linear, Stored
from baton.models.loader import load_model
from baton.models.ops import Ops
from baton.models.parameters import Parameters, Share
from baton.models.step import Step
from baton.models.weights import load_weights, match

CPU = torch.device("cpu")


class Int8Linear(Linear):
    """y = x (scale W)^T + b, with one scale a row."""

    def __init__(self, weight: Tensor, scale: Tensor, sizes: Sequence[int], bias: Tensor | None) -> None:
        self.weight, self.scale, self.sizes, self.bias = weight, scale, sizes, bias

    def __call__(self, x: Tensor, step: Step | None = None) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias)

    def in_fp32(self, x: Tensor) -> Tensor:
        return self(x).float()

    def settle(self) -> None:
        self.scale = self.scale.repeat_interleave(torch.tensor(self.sizes))[:, None]


class Int8:
    """Whole numbers, and one scale a module."""

    def stored(self, num_outputs: int, num_inputs: int) -> Sequence[Stored]:
        return (
            Stored("weight", (num_outputs, num_inputs), out_dim=0, in_dim=1, dtype=torch.int8, fill="zeros"),
            Stored("weight_scale", (), fill="ones"),
        )

    def linear(
        self, tensors: Mapping[str, Tensor], bias: Tensor | None, sizes: Sequence[int], ops: Ops, dtype: torch.dtype
    ) -> Linear:
        return Int8Linear(tensors["weight"], tensors["weight_scale"].view(-1), sizes, bias)


@pytest.fixture(params=["llama-biases", "phi3"])
def quantized(
    request: pytest.FixtureRequest,
    tiny_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A checkpoint whose layers have int8 weights, in a Baton that knows the form."""
    monkeypatch.setitem(weight_forms.QUANTIZED, "int8-of-this-test", lambda _: Int8())
    folder = Path(shutil.copytree(tiny_checkpoint(request.param), tmp_path / "quantized"))
    tensors = {}
    for name, tensor in load_file(folder / SINGLE).items():
        tensors[name] = tensor
        if name.endswith("proj.weight"):
            scale = tensor.abs().max() / 127
            tensors[name] = (tensor / scale).round().to(torch.int8)
            tensors[f"{name}_scale"] = scale
    save_file(tensors, folder / SINGLE)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "int8-of-this-test"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def plain_copy(quantized: Path, folder: Path) -> Path:
    """The same weights, not quantized any more."""
    shutil.copytree(quantized, folder)
    tensors = load_file(folder / SINGLE)
    scales = {name: tensors.pop(name) for name in list(tensors) if name.endswith("_scale")}
    for name, scale in scales.items():
        tensors[name.removesuffix("_scale")] = tensors[name.removesuffix("_scale")] * scale
    save_file(tensors, folder / SINGLE)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_new_form_loads_joins_and_answers(quantized: Path, tmp_path: Path) -> None:
    prompt = list(range(5, 40))
    answers = [
        Stepper(load_model(folder, dtype="float32", progress=False)).generate(Stream(list(prompt)), 12)
        for folder in (quantized, plain_copy(quantized, tmp_path / "plain"))
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(("split", "wide"), [("out", False), ("in", True)])
def test_a_new_form_is_shared_among_ranks(quantized: Path, split, wide: bool) -> None:
    name = "layers.0.self_attn.o_proj"
    entries = {key: entry for key, entry in read_entries(quantized).items() if f"{name}.weight" in key}
    x = torch.randn(3, 64)

    def product(share: Share) -> Tensor:
        parameters = Parameters(torch.float32, CPU, form=Int8(), share=share)
        layer = parameters.linear([(name, 64)], 64, split=split)
        load_weights(parameters, match(parameters, entries, "here"), progress=False)
        parameters.settle()
        columns = share.of(64, "inputs")
        return layer(x[:, columns.start : columns.stop] if wide else x)

    ranks = [product(Share(rank, 2)) for rank in (0, 1)]
    together = ranks[0] + ranks[1] if wide else torch.cat(ranks, 1)
    torch.testing.assert_close(together, product(Share()), rtol=1e-5, atol=1e-5)


def test_a_tensor_of_another_type_than_the_form_stores_is_refused(quantized: Path) -> None:
    tensors = load_file(quantized / SINGLE)
    name = "model.layers.1.mlp.down_proj.weight"
    save_file(tensors | {name: tensors[name].float()}, quantized / SINGLE)
    with pytest.raises(ModelLoadError, match=rf"'{name}' has dtype torch\.float32.*makes it torch\.int8"):
        load_model(quantized, progress=False)


def test_whole_numbers_are_no_plain_weights(quantized: Path) -> None:
    config = json.loads((quantized / "config.json").read_text())
    del config["quantization_config"]
    (quantized / "config.json").write_text(json.dumps(config))
    tensors = load_file(quantized / SINGLE)
    save_file({name: tensor for name, tensor in tensors.items() if not name.endswith("_scale")}, quantized / SINGLE)
    with pytest.raises(ModelLoadError, match=r"has dtype torch\.int8.*makes it a float"):
        load_model(quantized, progress=False)
