"""`baton inspect`: every family is told of truly, and each kind of damage in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.pooling_models import save_decoder
from tests.tiny_models import FAMILIES, MORE
from tests.tokenizer_kinds import KINDS, tokenizer_of
from typer.testing import CliRunner

from baton.cli import app
from baton.config import demo_model_path
from baton.errors import ConfigError
from baton.inspection.facts import look
from baton.inspection.room import Device, Room
from baton.models.checkpoint import INDEX, SINGLE

Checkpoint = Callable[[str], Path]


def with_tokenizer(source: Path, folder: Path, kind: str = "words, no decoder") -> Path:
    """Copy a checkpoint, and give it a tokenizer."""
    shutil.copytree(source, folder)
    tokenizer_of(kind).save(str(folder / "tokenizer.json"))
    return folder


def told(*words: str) -> tuple[str, int]:
    result = CliRunner().invoke(app, ["inspect", *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.output, result.exit_code


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def folder(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A checkpoint of Llama that a test may damage."""
    return with_tokenizer(tiny_checkpoint("llama"), tmp_path / "model")


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_every_family_is_served_and_counted(family: str, tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    facts = look(str(with_tokenizer(tiny_checkpoint(family), tmp_path / "model")))
    assert facts.problems == []
    assert facts.spec is not None
    assert facts.weights is not None
    stored = facts.weights.nbytes // 4
    if family.endswith("-images"):  # what sees is stored too, and not loaded
        assert 0 < (facts.num_parameters or 0) < stored
    else:
        assert facts.num_parameters == stored
    room = Room.of(facts.spec, Device.of("l4"))
    assert room.fits
    assert room.streams(facts.spec.max_model_len) > 100


def test_a_model_that_runs_by_the_definition_of_transformers_is_told_so(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = with_tokenizer(tiny_checkpoint("arcee"), tmp_path / "model")
    text, status = told(str(folder), "--gpu", "h100")
    assert "run by      transformers' definition" in text
    assert status == 0
    facts = look(str(folder))
    assert facts.weights is not None
    assert facts.num_parameters == facts.weights.nbytes // 4
    text, status = told(str(folder), "--gpu", "h100", "--model-impl", "baton")
    assert "architectures='ArceeForCausalLM' is not a model that Baton runs" in text
    assert status == 1


def test_what_pools_is_told_from_what_generates(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "model")
    tokenizer_of("words, no decoder").save(str(folder / "tokenizer.json"))
    text, status = told(str(folder), "--gpu", "h100")
    assert "served, as an embedding model" in text
    assert status == 0


def test_a_chat_model_is_told_of_line_by_line() -> None:
    text, status = told(str(demo_model_path()), "--gpu", "4090", "--context", "2048")
    assert status == 0
    for said in ("LlamaForCausalLM", "14.2 M, in bfloat16", "74 tensors", "8 layers", "2 of KV", "4,096 tokens"):
        assert said in text
    for said in ("RTX 4090", "chat_template.jinja", "tool calls hermes", "<|end|>", "4 KiB a token", "of 2,048 tokens"):
        assert said in text


def test_a_program_reads_one_object() -> None:
    text, status = told(str(demo_model_path()), "--gpu", "h100", "--json")
    found = json.loads(text)
    assert status == 0
    assert found["served"] is True
    assert found["room"]["kv_token_nbytes"] == 2 * 8 * 2 * 64 * 2
    assert found["tokenizer"]["chat_template"] == "chat_template.jinja"


def test_windows_make_room_for_more_streams(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    spec = look(str(with_tokenizer(tiny_checkpoint("mistral"), tmp_path / "model"))).spec
    assert spec is not None
    room = Room.of(spec, Device("a CPU", 64 * 2**30, is_gpu=False))
    assert room.kv_nbytes <= 2**30
    assert room.streams(256) == room.num_blocks // room.reach.num_held(256)
    assert room.longest() == 256


def test_a_context_that_does_not_fit_is_told_with_the_way_out(folder: Path) -> None:
    edit(folder / "config.json", max_position_embeddings=2**26)
    text, status = told(str(folder), "--gpu", "l4")
    assert "X does not fit: one stream of max_model_len=67108864" in text
    assert status == 1
    assert told(str(folder), "--gpu", "l4", "--max-model-len", "4096")[1] == 0
    text, status = told(str(folder), "--gpu", "l4", "--max-model-len", str(2**27))
    assert "max_model_len=134217728 is not from 1 to 67108864" in text
    assert status == 1


def test_a_device_that_is_not_known_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gpu=.* is not in the table"):
        Device.of("tpu")


# -- damage ---------------------------------------------------------------------------------------------------


def truncate(folder: Path) -> None:
    file = folder / SINGLE
    file.write_bytes(file.read_bytes()[:-100])


def lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / SINGLE)


def lie_of_the_size(folder: Path) -> None:
    edit(folder / "config.json", hidden_size=128)


def ask_for_code(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"})


def be_a_stranger(folder: Path) -> None:
    edit(folder / "config.json", architectures=["MambaForCausalLM"])


def take_another_tokenizer(folder: Path) -> None:
    tokenizer_of(KINDS[0]).save(str(folder / "tokenizer.json"))


def lose_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def lose_a_shard(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}))


def pickle_the_weights(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "pytorch_model.bin")


def break_the_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"hidden_size":')


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, "truncated or damaged"),
        (lose_a_tensor, "lacks 1 tensor (layers.1.mlp.up_proj.weight)"),
        (lie_of_the_size, "config.json makes it"),
        (ask_for_code, "auto_map='modeling_own.OwnForCausalLM'"),
        (be_a_stranger, "architectures='MambaForCausalLM' is not a model that Baton runs"),
        (take_another_tokenizer, "vocab_size=211"),
        (lose_the_tokenizer, "tokenizer"),
        (lose_a_shard, "1 of 1 weight files are missing"),
        (pickle_the_weights, "only in pickled or foreign files (pytorch_model.bin)"),
        (break_the_config, "config.json is not JSON"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_damage_is_told_in_one_line(damage: Callable[[Path], None], says: str, folder: Path) -> None:
    damage(folder)
    text, status = told(str(folder), "--gpu", "h100")
    problems = [line for line in text.splitlines() if line.startswith("X not served: ")]
    assert len(problems) == 1
    assert says in problems[0]
    assert status == 1


def test_what_is_no_model_and_what_is_nowhere_is_told() -> None:
    text, status = told("/nowhere/at/all", "--gpu", "h100")
    assert "X not served: model='/nowhere/at/all': no such folder" in text
    assert status == 1


def test_a_quantized_model_says_which_form_stops_it(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "strange"})
    text, status = told(str(folder), "--gpu", "h100")
    assert "quantized   strange" in text
    assert "quant_method='strange'" in text
    assert status == 1
