"""Quantized checkpoints of each form answer as the weights that they stand for.

On a CPU a weight is written out in fp32, so the two differ by nothing but the order of additions: scales are those of the
checkpoint, unrounded, and codes are exact.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.stepping import Stepper, Stream
from tests.quantized_models import FORMS, fp8, packed_ints, quantized, repacked
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from baton.errors import ModelLoadError
from baton.models.causal_lm import CausalLM
from baton.models.config import read_spec
from baton.models.identity import model_identity
from baton.models.loader import load_model, weights_nbytes
from baton.models.mxfp4 import Mxfp4
from baton.models.weight_forms import QUANTIZED, SERVED

PROMPT = list(range(5, 40))


def answer(folder: Path, **arguments: Any) -> list[int]:
    model = load_model(folder, dtype="float32", progress=False, **arguments)
    return Stepper(model).generate(Stream(list(PROMPT)), 8)


def logits(folder: Path, **arguments: Any) -> torch.Tensor:
    return logits_of(load_model(folder, dtype="float32", progress=False, **arguments))


def logits_of(model: CausalLM) -> torch.Tensor:
    stream = Stream(list(PROMPT))
    Stepper(model).step((stream, len(PROMPT)))
    return torch.stack(stream.logits)


def change_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= fields
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def plain(tiny_checkpoint: Callable[[str], Path]) -> Path:
    return tiny_checkpoint("llama-biases")


@pytest.mark.parametrize("name", sorted(FORMS))
def test_a_form_answers_as_the_weights_that_it_stands_for(name: str, plain: Path, tmp_path: Path) -> None:
    folder, standing = quantized(plain, tmp_path, name)
    torch.testing.assert_close(logits(folder), logits(standing), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gptq-4-zeros", "awq", "ct-int4", "fp8-tensor", "bnb-int8"])
def test_fused_modules_are_joined_from_their_words(
    name: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, standing = quantized(tiny_checkpoint("phi3"), tmp_path, name)
    torch.testing.assert_close(logits(folder), logits(standing), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_memory_is_planned_as_it_is_taken_and_random_weights_are_sane(name: str, plain: Path, tmp_path: Path) -> None:
    folder, _ = quantized(plain, tmp_path, name)
    (folder / "model.safetensors").unlink()
    model = load_model(folder, dtype="float32", load_format="dummy")
    assert weights_nbytes(read_spec(folder), "float32") == model.nbytes
    found = logits_of(model)
    assert torch.isfinite(found).all()
    assert found.std() > 0


def test_weights_that_determinism_writes_out_are_planned_so(plain: Path, tmp_path: Path) -> None:
    folder, _ = quantized(plain, tmp_path, "gptq-4")
    packed, written_out = (
        weights_nbytes(read_spec(folder), "bfloat16", device="cuda", deterministic=deterministic)
        for deterministic in (False, True)
    )
    assert packed < written_out == weights_nbytes(read_spec(plain), "bfloat16", device="cuda")


def test_groups_of_modules_have_forms_of_their_own(plain: Path, tmp_path: Path) -> None:
    """Attention in four bits, `down_proj` in eight-bit floats, one layer's others as they were."""
    ints = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    floats = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
    config = {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "config_groups": {
            "group_0": {"targets": ["re:.*self_attn.*"], "weights": ints, "format": "pack-quantized"},
            "group_1": {"targets": ["re:.*down_proj"], "weights": floats, "format": "float-quantized"},
        },
        "ignore": ["lm_head", "model.layers.1.mlp.down_proj"],
    }

    def pack(module: str, weight: torch.Tensor) -> Any:
        if "self_attn" in module:
            return packed_ints(4)(weight)
        is_quantized = module.endswith("down_proj") and "layers.1" not in module
        return fp8("channel")(weight) if is_quantized else None

    folder, standing = repacked(plain, tmp_path, config, pack)
    torch.testing.assert_close(logits(folder), logits(standing), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "fields", "parts"),
    [
        ("gptq-4", {"bits": 5}, ["bits=5", "2, 3, 4, 8"]),
        ("gptq-4", {"bits": 8}, ["qweight", "has shape [12, 64]", "makes it [24, 64]"]),
        ("gptq-4", {"group_size": 48}, ["group_size=48", "64 inputs", "--quantization int4"]),
        ("gptq-4", {"group_size": 16}, ["qzeros", "has shape [3, 8]", "makes it [6, 8]"]),
        (
            "gptq-4",
            {"quant_method": "aqlm"},
            ["quant_method='aqlm'", "awq, bitsandbytes, compressed-tensors, fp8, gptq, mxfp4"],
        ),
        ("gptq-4", {"quant_method": ["gptq"]}, ["quant_method=['gptq']"]),
        ("gptq-4", {"checkpoint_format": "marlin"}, ["checkpoint_format='marlin'", "gptq_v2"]),
        ("gptq-4", {"lm_head": True}, ["lm_head=True"]),
        ("awq", {"bits": 8}, ["bits=8", "AWQ is served with 4"]),
        ("awq", {"version": "gemv"}, ["version='gemv'", "gemm"]),
        ("awq", {"modules_to_not_convert": "all"}, ["modules_to_not_convert='all'", "list"]),
        ("fp8-tensor", {"activation_scheme": "odd"}, ["activation_scheme='odd'", "dynamic, static"]),
        ("fp8-block", {"weight_block_size": [128]}, ["weight_block_size=[128]", "[128, 128]"]),
        ("ct-int4", {"config_groups": {}}, ["config_groups={}"]),
        ("ct-int4", {"config_groups": {"group_0": 4}}, ["config_groups.group_0=4"]),
        ("ct-int4", {"ignore": ["re:("]}, ["ignore='('", "regular expression"]),
        ("gptq-4", {"dynamic": {"-:[": {}}}, ["dynamic='['", "regular expression"]),
        ("gptq-4", {"dynamic": {"+:.*": 4}}, ["dynamic=", "patterns to settings"]),
        ("ct-int4", {"format": "marlin-24"}, ["format='marlin-24'", "pack-quantized"]),
        ("ct-int4", {"kv_cache_scheme": {"num_bits": 8, "type": "float"}}, ["kv_cache_scheme", "not served"]),
        ("ct-int4", {"sparsity_config": {"format": "sparse-24-bitmask"}}, ["sparsity_config", "not served"]),
    ],
)
def test_what_contradicts_itself_is_refused_before_memory_is_taken(
    name: str, fields: dict[str, Any], parts: list[str], plain: Path, tmp_path: Path
) -> None:
    folder, _ = quantized(plain, tmp_path, name)
    change_config(folder, **fields)
    with pytest.raises(ModelLoadError) as raised:
        load_model(folder, progress=False)
    for part in parts:
        assert part in str(raised.value)


def test_scales_that_are_missing_are_named(plain: Path, tmp_path: Path) -> None:
    folder, _ = quantized(plain, tmp_path, "ct-int4")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight_scale"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"lacks 1 tensor \(layers\.1\.mlp\.up_proj\.weight_scale\)"):
        load_model(folder, progress=False)


@pytest.mark.parametrize("name", ["gptq-4-desc-act", "ct-int4-actorder"])
@pytest.mark.parametrize("wrong", [-1, 0])
def test_groups_that_are_not_all_of_one_size_are_refused(name: str, wrong: int, plain: Path, tmp_path: Path) -> None:
    folder, _ = quantized(plain, tmp_path, name)
    tensors = load_file(folder / "model.safetensors")
    g_idx = next(key for key in sorted(tensors) if "down_proj" in key and key.endswith("g_idx"))
    tensors[g_idx][tensors[g_idx].argmax()] = wrong
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"g_idx .* groups that are not of"):
        load_model(folder, progress=False)


@pytest.mark.parametrize("name", ["gptq_marlin", "gptq"])
def test_the_method_that_a_checkpoint_has_may_be_named(name: str, plain: Path, tmp_path: Path) -> None:
    folder, _ = quantized(plain, tmp_path, "gptq-4")
    assert answer(folder, quantization=name) == answer(folder)


@pytest.mark.parametrize(
    ("quantized_as", "asked", "part"),
    [
        ("gptq-4", "awq", "is quantized by gptq"),
        ("gptq-4", "int4", "is quantized by gptq"),
        (None, "awq", "not quantized"),
        (None, "int3", "none of fp8, int8, int4"),
    ],
)
def test_a_method_that_a_checkpoint_does_not_have_is_refused(
    quantized_as: str | None, asked: str, part: str, plain: Path, tmp_path: Path
) -> None:
    folder = quantized(plain, tmp_path, quantized_as)[0] if quantized_as else plain
    with pytest.raises(ModelLoadError, match=part):
        load_model(folder, quantization=asked, progress=False)


def rounded(method: str, weight: torch.Tensor) -> torch.Tensor:
    """What is left of a weight [outputs, inputs], by the scales that the documentation names."""
    largest = {"int8": 127, "fp8": 448, "int4": 7.5}[method]
    num_inputs = weight.shape[1]
    groups = weight.view(len(weight), -1, num_inputs if method != "int4" else 128 if num_inputs == 256 else 32)
    scale = groups.abs().amax(-1, keepdim=True) / largest
    if method == "fp8":
        return ((groups / scale).to(torch.float8_e4m3fn).float() * scale).view(weight.shape)
    lowest, highest = (-8, 7) if method == "int4" else (-127, 127)
    return ((groups / scale).round().clamp(lowest, highest) * scale).view(weight.shape)


@pytest.mark.parametrize(("method", "most"), [("int8", 0.01), ("fp8", 0.04), ("int4", 0.12)])
@pytest.mark.parametrize("family", ["llama-biases", "gpt2", "phi3"])
def test_a_checkpoint_is_quantized_while_it_is_read(
    method: str, most: float, family: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    plain, folder = tiny_checkpoint(family), tmp_path / "rounded"
    shutil.copytree(plain, folder)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        is_conv = any(part in name for part in ("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        if is_conv or name.endswith("proj.weight"):
            weight = tensor.t().contiguous() if is_conv else tensor
            left = rounded(method, weight)
            assert 0 < (left - weight).norm() / weight.norm() < most
            tensors[name] = left.t().contiguous() if is_conv else left
    save_file(tensors, folder / "model.safetensors")
    torch.testing.assert_close(logits(plain, quantization=method), logits(folder), rtol=1e-3, atol=1e-3)


def test_blocks_of_mxfp4_stand_for_what_transformers_reads_there() -> None:
    torch.manual_seed(0)
    form = Mxfp4("here")
    shapes = {stored.suffix: stored.shape for stored in form.stored(6, 96)}
    tensors = {
        "blocks": torch.randint(0, 256, shapes["blocks"], dtype=torch.uint8),
        "scales": torch.randint(110, 130, shapes["scales"], dtype=torch.uint8),
    }
    found = form.values(tensors, [6]).dense(torch.float32)
    expected = convert_moe_packed_tensors(tensors["blocks"][None], tensors["scales"][None], dtype=torch.float32)
    assert torch.equal(found, expected[0].t())


def test_every_method_is_in_the_documentation() -> None:
    assert {method for method, *_ in SERVED} == set(QUANTIZED)


def test_answers_of_weights_quantized_otherwise_have_another_identity(plain: Path) -> None:
    names = {model_identity(plain, quantization=method) for method in (None, "int4", "int8", "fp8")}
    assert len(names) == 4
