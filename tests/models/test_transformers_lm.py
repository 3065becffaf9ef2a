"""Models that Baton does not define run by transformers' definition, or are refused with the reason and the way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.models.stepping import Stepper, Stream
from tests.tiny_models import load_tiny

from baton.errors import ModelLoadError
from baton.models.config import make_spec, read_spec
from baton.models.loader import load_model, weights_nbytes

PROMPT = list(range(3, 40))
SHAPE: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def described(config_class: str, architecture: str, **changes: Any) -> dict[str, Any]:
    config = getattr(transformers, config_class)(**(SHAPE | changes)).to_dict()
    return {**config, "architectures": [architecture], "dtype": "float32"}


def changed(folder: Path, into: Path, **changes: Any) -> Path:
    """Copy a checkpoint with some of its config.json changed."""
    into.mkdir(exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (into / "config.json").write_text(json.dumps(config | changes))
    save_file(load_file(folder / "model.safetensors"), into / "model.safetensors")
    return into


def logits_of(folder: Path, **options: Any) -> torch.Tensor:
    stream = Stream(list(PROMPT))
    Stepper(load_model(folder, dtype="float32", progress=False, **options)).step((stream, len(PROMPT)))
    return torch.stack(stream.logits)


def test_a_family_of_batons_own_runs_by_either_definition(tiny_checkpoint: Callable[[str], Path]) -> None:
    folder = tiny_checkpoint("gemma2")
    assert read_spec(folder).family == "gemma2"
    by_transformers = read_spec(folder, model_impl="transformers")
    assert by_transformers.family == "transformers"
    assert by_transformers.windows == read_spec(folder).windows
    torch.testing.assert_close(logits_of(folder, model_impl="transformers"), logits_of(folder), rtol=0, atol=1e-4)


def test_each_token_has_the_same_bits_in_any_company_where_asked_for(tiny_checkpoint: Callable[[str], Path]) -> None:
    model = load_model(tiny_checkpoint("exaone4"), dtype="float32", progress=False, deterministic=True)
    stepper, alone, beside, other = Stepper(model), Stream(PROMPT[:9]), Stream(PROMPT[:9]), Stream(PROMPT[4:])
    stepper.step((alone, 9))
    stepper.step((beside, 4), (other, 20))
    stepper.step((other, 1), (beside, 5))
    assert torch.equal(torch.stack(alone.logits), torch.stack(beside.logits))


def test_weights_are_counted_before_they_are_read(tiny_checkpoint: Callable[[str], Path]) -> None:
    folder = tiny_checkpoint("nemotron")
    model = load_model(folder, dtype="bfloat16", progress=False)
    buffers_nbytes = sum(b.nbytes for n, b in load_tiny(folder).named_buffers())
    assert weights_nbytes(read_spec(folder), "bfloat16") + buffers_nbytes == model.nbytes


def test_dummy_weights_need_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(described("ArceeConfig", "ArceeForCausalLM")))
    assert logits_of(tmp_path, load_format="dummy").isfinite().all()


def test_tensors_that_are_missing_or_of_another_model_are_named(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = changed(tiny_checkpoint("arcee"), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    lost = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"lacks 1 tensor \(layers\.1\.mlp\.up_proj\.weight\)"):
        load_model(folder, progress=False)
    save_file(
        {**tensors, "model.layers.1.mlp.up_proj.weight": lost, "model.odd": lost + 1}, folder / "model.safetensors"
    )
    with pytest.raises(ModelLoadError, match=r"has 1 tensor \(model\.odd\)"):
        load_model(folder, progress=False)
    save_file({**tensors, "model.layers.1.mlp.up_proj.weight": lost[1:]}, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"shape \[95, 64\], and config\.json makes it \[96, 64\]"):
        load_model(folder, progress=False)


def test_a_tied_output_that_is_stored_again_must_be_the_same(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = changed(tiny_checkpoint("nemotron"), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    same = tensors["model.embed_tokens.weight"].clone()
    save_file({**tensors, "lm_head.weight": same}, folder / "model.safetensors")
    load_model(folder, progress=False)
    save_file({**tensors, "lm_head.weight": same + 1}, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"lm_head\.weight differs from embed_tokens\.weight"):
        load_model(folder, progress=False)


@pytest.mark.parametrize(
    ("config", "architecture", "changes", "says"),
    [
        ("MambaConfig", "MambaForCausalLM", {}, "layers of the kind linear_attention"),
        ("Lfm2Config", "Lfm2ForCausalLM", {"layer_types": ["conv", "full_attention"]}, "layers of the kind conv"),
        ("Ernie4_5_MoeConfig", "Ernie4_5_MoeForCausalLM", {}, "another form than in the model (mlp.experts"),
        ("DiffLlamaConfig", "DiffLlamaForCausalLM", {}, "layer 0 attends more than once"),
        ("YoutuConfig", "YoutuForCausalLM", {}, "differ in their heads' width"),
        ("DogeConfig", "DogeForCausalLM", {}, "attention from outside"),
        ("BioGptConfig", "BioGptForCausalLM", {}, "does not go through transformers' attention interface"),
        (
            "ArceeConfig",
            "ArceeForCausalLM",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type='dynamic'",
        ),
        ("ArceeConfig", "ArceeForCausalLM", {"quantization_config": {"quant_method": "awq"}}, "run unquantized"),
        ("ArceeConfig", "ArceeForCausalLM", {"hidden_act": "no such"}, "it cannot be built (KeyError"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_run_so_is_refused(config: str, architecture: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelLoadError) as refused:
        make_spec(described(config, architecture) | changes, source="/models/x")
    assert says in str(refused.value)
    assert "Take" in str(refused.value)


def test_code_other_classes_and_quantization_are_refused() -> None:
    arcee = described("ArceeConfig", "ArceeForCausalLM")
    with pytest.raises(ModelLoadError, match="which Baton never runs"):
        make_spec(arcee | {"auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}})
    with pytest.raises(ModelLoadError, match="remote code"):
        make_spec(arcee | {"auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}}, model_impl="transformers")
    with pytest.raises(ModelLoadError, match="that generates is ArceeForCausalLM"):
        make_spec(arcee | {"architectures": ["ArceeForTokenClassification"]}, model_impl="transformers")
    with pytest.raises(ModelLoadError, match="has no model_type='nobody'"):
        make_spec(arcee | {"model_type": "nobody"}, model_impl="transformers")
    with pytest.raises(ModelLoadError, match="has an encoder and a decoder"):
        make_spec({"model_type": "bart", "architectures": ["BartForCausalLM"]}, model_impl="transformers")
    with pytest.raises(ModelLoadError, match="Leave --quantization out"):
        make_spec(arcee, quantization="int8")
    with pytest.raises(ModelLoadError, match="is not a model that Baton runs"):
        make_spec(arcee, model_impl="baton")
