"""Weights: whole checkpoints load in every layout, and each kind of damage gets one error that names it."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.stepping import Stepper, Stream
from tests.tiny_models import save_tiny

from baton.errors import ModelLoadError
from baton.models import reading
from baton.models.checkpoint import INDEX, SINGLE, read_entries
from baton.models.config import read_spec
from baton.models.loader import load_model, weights_nbytes
from baton.models.parameters import Parameters

Checkpoint = Callable[[str], Path]
PROMPT = list(range(5, 40))


def answer(folder: Path, **options: Any) -> list[int]:
    model = load_model(folder, dtype="float32", progress=False, **options)
    return Stepper(model).generate(Stream(list(PROMPT)), 12)


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(ModelLoadError) as error:
        load_model(folder, progress=False, **options)
    return str(error.value)


@pytest.fixture
def folder(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A checkpoint of Llama that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "model"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("shards"), max_shard_size="100KB")


@pytest.fixture
def sharded(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "sharded"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename(folder: Path, change: Callable[[str], str]) -> None:
    tensors = load_file(folder / SINGLE)
    save_file({change(name): tensor for name, tensor in tensors.items()}, folder / SINGLE)


# ------------------------------------------------------------------------------------------------------------
# Layouts


def test_shards_load_as_the_single_file_does(sharded: Path, tiny_checkpoint: Checkpoint) -> None:
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert answer(sharded) == answer(tiny_checkpoint("llama"))


def test_shards_without_their_index_load_by_name(sharded: Path, tiny_checkpoint: Checkpoint) -> None:
    (sharded / INDEX).unlink()
    assert answer(sharded) == answer(tiny_checkpoint("llama"))


@pytest.mark.parametrize(
    ("family", "prefix"), [("gpt2", "transformer."), ("opt", "model.decoder."), ("llama", "model.")]
)
def test_names_load_with_and_without_their_prefix(
    family: str, prefix: str, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    bare = Path(shutil.copytree(tiny_checkpoint(family), tmp_path / "bare"))
    rename(bare, lambda name: name.removeprefix(prefix))
    assert answer(bare) == answer(tiny_checkpoint(family))


def test_opt_loads_with_the_short_prefix_of_its_first_checkpoints(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    old = Path(shutil.copytree(tiny_checkpoint("opt"), tmp_path / "old"))
    rename(old, lambda name: name.removeprefix("model."))
    assert answer(old) == answer(tiny_checkpoint("opt"))


def test_buffers_that_old_checkpoints_carry_are_passed_over(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    old = Path(shutil.copytree(tiny_checkpoint("gpt2"), tmp_path / "old"))
    tensors = load_file(old / SINGLE)
    for layer in range(3):
        tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 4, 4)
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, old / SINGLE)
    assert answer(old) == answer(tiny_checkpoint("gpt2"))


@pytest.mark.parametrize("keep_embedding", [True, False])
def test_a_tied_output_may_be_stored_twice_or_under_the_other_name(
    keep_embedding: bool, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    tied = Path(shutil.copytree(tiny_checkpoint("qwen2"), tmp_path / "tied"))
    tensors = load_file(tied / SINGLE)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    if not keep_embedding:
        del tensors["model.embed_tokens.weight"]
    save_file(tensors, tied / SINGLE)
    assert answer(tied) == answer(tiny_checkpoint("qwen2"))


def test_a_tied_output_that_differs_is_refused(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    tied = Path(shutil.copytree(tiny_checkpoint("qwen2"), tmp_path / "tied"))
    tensors = load_file(tied / SINGLE)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, tied / SINGLE)
    assert "tie_word_embeddings=true" in refusal(tied)


@pytest.mark.parametrize("family", ["llama-biases", "gpt2", "phi3"])
def test_weights_are_cast_to_the_dtype_asked_for(
    family: str, tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(reading.CHUNK_NBYTES, "cpu", 1000)  # so that every tensor comes in pieces
    monkeypatch.setattr(Parameters, "settle", leave_as_loaded)
    folder = tiny_checkpoint(family)
    exact = load_model(folder, dtype="float32", progress=False).parameters.targets
    cast = load_model(folder, dtype=torch.bfloat16, progress=False).parameters.targets
    assert exact
    for name, target in exact.items():
        for piece, rounded in zip(target.pieces, cast[name].pieces, strict=True):
            assert torch.equal(rounded.tensor, piece.tensor.bfloat16())
            assert piece.tensor.isfinite().all()


def leave_as_loaded(parameters: Parameters) -> None:
    """Stand in for `settle`, so that the parameters can be compared with the checkpoint's tensors."""


def test_every_parameter_is_one_of_the_checkpoint(tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Parameters, "settle", leave_as_loaded)
    folder = tiny_checkpoint("qwen3-biases")
    stored = {name.removeprefix("model."): tensor for name, tensor in load_file(folder / SINGLE).items()}
    targets = load_model(folder, progress=False).parameters.targets
    assert targets.keys() == stored.keys()
    for name, target in targets.items():
        assert torch.equal(target.pieces[0].tensor, stored[name])


def test_the_bytes_planned_are_the_bytes_taken(tiny_checkpoint: Checkpoint) -> None:
    folder = tiny_checkpoint("llama-3.1")
    model = load_model(folder, dtype="bfloat16", progress=False)
    stored = sum(entry.nbytes for entry in read_entries(folder).values())
    table_nbytes = 256 * 2 * 8 * 4
    assert weights_nbytes(read_spec(folder), "bfloat16") == model.nbytes == stored // 2 + table_nbytes


@pytest.mark.usefixtures("no_log")
def test_the_progress_bar_is_drawn_on_stderr_when_asked_for(
    tiny_checkpoint: Checkpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    load_model(tiny_checkpoint("llama"), progress=True)
    captured = capfd.readouterr()
    assert "Loading weights" in captured.err
    assert not captured.out
    load_model(tiny_checkpoint("llama"), progress=False)
    assert not capfd.readouterr().err


# ------------------------------------------------------------------------------------------------------------
# Random weights


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_dummy_weights_need_config_json_alone_and_follow_the_seed(
    family: str, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    shutil.copy(tiny_checkpoint(family) / "config.json", tmp_path)
    first, second, other = (load_model(tmp_path, load_format="dummy", seed=seed) for seed in (3, 3, 4))
    for (tensor, fill), (again, _), (different, _) in zip(
        first.parameters.fills, second.parameters.fills, other.parameters.fills, strict=True
    ):
        assert torch.equal(tensor, again)
        if fill == "normal":
            assert not torch.equal(tensor, different)
            assert 0.015 < float(tensor.std()) < 0.025
    assert len(Stepper(first).generate(Stream(list(PROMPT)), 4)) == 4


# ------------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize("kept", [0, 5, 8, 50, 3000, -1])
def test_a_truncated_file_is_named(folder: Path, kept: int) -> None:
    path = folder / SINGLE
    path.write_bytes(path.read_bytes()[:kept])
    message = refusal(folder)
    assert str(path) in message
    assert "fetch the checkpoint again" in message


def test_a_file_with_bytes_behind_its_tensors_is_refused(folder: Path) -> None:
    path = folder / SINGLE
    path.write_bytes(path.read_bytes() + b"x")
    assert "not fully covered" in refusal(folder)


def test_a_git_lfs_pointer_is_recognized(folder: Path) -> None:
    (folder / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    assert "git lfs pull" in refusal(folder)


@pytest.mark.parametrize(
    ("header", "part"),
    [
        (b"{]", "damaged"),
        (b"[1]", "damaged"),
        (b'{"a": 5}', "damaged"),
        (b'{"a": {"dtype": "F32", "shape": [2]}}', "damaged"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "invalid shape"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "invalid offset for tensor `a`"),
        (b'{"a": {"dtype": "F8_E5M2", "shape": [4], "data_offsets": [0, 4]}}', "dtype F8_E5M2"),
        (b'{"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}', "`-1`"),
    ],
)
def test_a_damaged_header_is_named(folder: Path, header: bytes, part: str) -> None:
    (folder / SINGLE).write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    message = refusal(folder)
    assert SINGLE in message
    assert part in message


def test_a_file_that_shrinks_while_it_is_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / SINGLE
    entries = read_entries(folder)
    path.write_bytes(path.read_bytes()[:-10])
    monkeypatch.setattr("baton.models.loader.read_entries", lambda _: entries)
    assert f"{path} is truncated" in refusal(folder)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    assert lost.name in refusal(sharded)
    (sharded / INDEX).unlink()
    assert "missing" in refusal(sharded)


def test_a_shard_of_another_version_is_named(sharded: Path) -> None:
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    shutil.copy(first, second)
    assert second.name in refusal(sharded)


def test_an_index_that_points_elsewhere_is_refused(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    name = next(iter(index["weight_map"]))
    for wrong in ("../secret.safetensors", "pytorch_model.bin", 5):
        index["weight_map"][name] = wrong
        (sharded / INDEX).write_text(json.dumps(index))
        assert repr(wrong) in refusal(sharded)


def test_files_that_nothing_ties_together_are_refused(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "a.safetensors")
    assert answer(folder)
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")
    assert "a.safetensors, b.safetensors" in refusal(folder)


def test_pickled_weights_are_refused_with_the_way_to_convert_them(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    message = refusal(folder)
    assert "pytorch_model.bin" in message
    assert "save_pretrained" in message


def test_consolidated_weights_alone_are_refused_with_what_to_take(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "consolidated.safetensors")
    assert "Mistral's and Meta's own code alone" in refusal(folder)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / SINGLE).unlink()
    message = refusal(folder)
    assert "no *.safetensors" in message
    assert "dummy" in message


def test_missing_strange_and_misshapen_tensors_are_named(folder: Path) -> None:
    whole = load_file(folder / SINGLE)
    without = {name: tensor for name, tensor in whole.items() if name != "model.layers.1.mlp.up_proj.weight"}
    save_file(without, folder / SINGLE)
    assert "lacks 1 tensor" in refusal(folder)
    assert "layers.1.mlp.up_proj.weight" in refusal(folder)
    save_file(whole | {"model.layers.9.mlp.up_proj.weight": torch.ones(3)}, folder / SINGLE)
    assert "model.layers.9.mlp.up_proj.weight" in refusal(folder)
    save_file(whole | {"model.norm.weight": torch.ones(63)}, folder / SINGLE)
    message = refusal(folder)
    assert "'model.norm.weight' has shape [63]" in message
    assert "[64]" in message


def test_weights_of_another_size_are_found_before_memory_is_taken(folder: Path) -> None:
    edit_config(folder, hidden_size=2**20, intermediate_size=2**22, num_attention_heads=4, head_dim=2**18)
    assert "has shape" in refusal(folder)


def test_a_lost_output_layer_is_explained(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    del tensors["lm_head.weight"]
    save_file(tensors, folder / SINGLE)
    assert "tie_word_embeddings=false" in refusal(folder)


def test_wrong_arguments_are_refused_by_name(folder: Path) -> None:
    assert "load_format='pt'" in refusal(folder, load_format="pt")
    assert "dtype='int8'" in refusal(folder, dtype="int8")
    assert "max_model_len=257 is not from 1 to 256" in refusal(folder, max_model_len=257)
    assert "is a file" in refusal(folder / SINGLE)
    assert "no such folder" in refusal(folder / "nowhere")
