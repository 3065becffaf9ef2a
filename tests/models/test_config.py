"""config.json becomes a spec as transformers reads it, or one clear refusal."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from baton.errors import ModelLoadError
from baton.foreign_model import ADAPTER
from baton.models.config import make_spec, read_spec
from baton.models.families import FAMILIES
from baton.models.hub import locate
from baton.text import Tokenizer

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
# As released: the fields that matter of config.json of the real checkpoints, written by transformers 4.
LLAMA_3_1_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
QWEN2_5_7B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 152064,
}
PHI_3_MINI_128K: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    },
    "bos_token_id": 1,
    "eos_token_id": 32000,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "model_type": "phi3",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": [1.5] * 48, "short_factor": [1.0] * 48, "type": "su"},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "torch_dtype": "bfloat16",
    "vocab_size": 32064,
}


def refusal(**changes: Any) -> str:
    raw = {name: value for name, value in (LLAMA | changes).items() if value is not ...}
    with pytest.raises(ModelLoadError) as error:
        make_spec(raw, source="/models/x")
    return str(error.value)


def test_llama_3_1_as_transformers_4_wrote_it() -> None:
    spec = make_spec(LLAMA_3_1_8B)
    assert (spec.family, spec.num_layers, spec.num_kv_heads, spec.head_dim) == ("llama", 32, 8, 128)
    assert (spec.dtype, spec.max_model_len, spec.eos_token_ids) == ("bfloat16", 131072, (128001, 128008, 128009))
    (rope,) = spec.ropes
    assert rope.frequencies[:2] == pytest.approx((1, 500000.0 ** (-1 / 64)))
    assert rope.frequencies[-1] == pytest.approx(500000.0 ** (-63 / 64) / 8)


def test_the_same_config_as_transformers_5_writes_it_gives_the_same_spec() -> None:
    new = dict(LLAMA_3_1_8B)
    new["rope_parameters"] = new.pop("rope_scaling") | {"rope_theta": new.pop("rope_theta")}
    new["dtype"] = new.pop("torch_dtype")
    assert make_spec(new) == make_spec(LLAMA_3_1_8B)


def test_qwen2_has_biases_and_no_window_unless_it_says_so() -> None:
    spec = make_spec(QWEN2_5_7B)
    assert spec.layers[0].attention.qkv_bias
    assert not spec.layers[0].attention.out_bias
    assert spec.windows == (None,) * 28
    sliding = make_spec(QWEN2_5_7B | {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 20})
    assert sliding.windows == (None,) * 20 + (4096,) * 8


def test_yarn_reaches_beyond_max_position_embeddings() -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert make_spec(QWEN2_5_7B | {"rope_scaling": scaling}).max_model_len == 131072


def test_phi_3_of_the_hub_is_read_though_it_names_its_old_code() -> None:
    spec = make_spec(PHI_3_MINI_128K)
    (rope,) = spec.ropes
    assert (rope.frequencies[0], rope.long_frequencies[0]) == pytest.approx((1, 1 / 1.5))
    assert (rope.scale, rope.original_max_len) == pytest.approx(((1 + 5 / 12) ** 0.5, 4096))
    assert spec.windows == (262144,) * 32


def test_generation_config_says_which_tokens_end_an_answer() -> None:
    assert make_spec(LLAMA).eos_token_ids == (2,)
    assert make_spec(LLAMA | {"eos_token_id": None}).eos_token_ids == ()
    assert make_spec(LLAMA | {"eos_token_id": 5}, {"eos_token_id": [7, 9]}).eos_token_ids == (7, 9)


@pytest.mark.parametrize("architecture", ["MambaForCausalLM", "LlamaForSequenceClassification", "T5Model"])
def test_an_unknown_architecture_is_refused_with_those_that_are_known(architecture: str) -> None:
    message = refusal(architectures=[architecture])
    assert architecture in message
    assert all(known in message for family in FAMILIES for known in family.architectures)


def test_model_type_serves_where_no_architecture_is_named() -> None:
    raw = {name: value for name, value in LLAMA.items() if name != "architectures"}
    assert make_spec(raw).family == "llama"
    assert "model_type='mamba'" in refusal(architectures=..., model_type="mamba")


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoModelForCausalLM": "modeling_mine.MyModel"}},
        {"auto_map": {"AutoConfig": "someone/repo--configuration_mine.MyConfig"}},
        {"architectures": ["MyModel"], "auto_map": {"AutoModelForCausalLM": "modeling_mine.MyModel"}},
    ],
)
def test_remote_code_is_refused(changes: dict[str, Any]) -> None:
    message = refusal(**changes)
    assert "_mine.My" in message
    assert "never runs" in message


def test_weights_quantized_in_an_unknown_way_are_refused() -> None:
    message = refusal(quantization_config={"quant_method": "strange", "bits": 4})
    assert "quantization_config" in message
    assert "strange" in message


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"hidden_size": -64}, ["hidden_size=-64", "at least 1"]),
        ({"hidden_size": "64"}, ["hidden_size='64'", "whole number"]),
        ({"hidden_size": 2**40}, ["hidden_size="]),
        ({"hidden_size": 65}, ["hidden_size=65", "multiple of num_attention_heads=8"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers=0"]),
        ({"num_hidden_layers": ...}, ["lacks num_hidden_layers"]),
        ({"vocab_size": True}, ["vocab_size=True"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads=3", "num_attention_heads=8"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps=nan", "above 0"]),
        ({"rms_norm_eps": 0}, ["rms_norm_eps=0"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings='yes'", "true or false"]),
        ({"hidden_act": "relu"}, ["hidden_act='relu'", "silu"]),
        ({"head_dim": 7}, ["head_dim=7"]),
        ({"torch_dtype": "float8_e4m3fn"}, ["float8_e4m3fn", "bfloat16"]),
        ({"rope_scaling": {"type": "magic", "factor": 2}}, ["rope_type='magic'", "llama3"]),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, ["factor='2'"]),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, ["short_factor", "4 numbers"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, ["rope_parameters", "all layers"]),
        (
            {"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
            ["high_freq_factor"],
        ),
        ({"eos_token_id": "</s>"}, ["eos_token_id='</s>'"]),
        ({"architectures": "LlamaForCausalLM"}, ["architectures='LlamaForCausalLM'", "list"]),
    ],
)
def test_an_odd_value_is_refused_by_name(changes: dict[str, Any], parts: list[str]) -> None:
    message = refusal(**changes)
    assert message.startswith("/models/x")
    for part in parts:
        assert part in message


def test_layer_types_must_fit_the_layers() -> None:
    raw = QWEN2_5_7B | {"use_sliding_window": True, "layer_types": ["full_attention"] * 3}
    with pytest.raises(ModelLoadError, match="must list 28 of sliding_attention, full_attention"):
        make_spec(raw)


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "\x00"])
def test_a_damaged_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        read_spec(tmp_path)


def test_a_wrong_folder_is_told_apart_from_a_missing_one(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no such folder"):
        read_spec(tmp_path / "nowhere")
    with pytest.raises(ModelLoadError, match="holds nothing"):
        read_spec(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ModelLoadError, match=r"no config\.json; it holds notes\.txt"):
        read_spec(tmp_path)


def test_an_adapter_and_gguf_files_are_told_from_a_model(tmp_path: Path) -> None:
    (tmp_path / "m.Q4_K_M.gguf").touch()
    for read in (read_spec, Tokenizer, locate):
        with pytest.raises(ModelLoadError, match=r"GGUF files \(m\.Q4_K_M\.gguf\).*the model that they were made from"):
            read(tmp_path if read is not locate else tmp_path / "m.Q4_K_M.gguf")
    (tmp_path / ADAPTER).write_text('{"base_model_name_or_path": "some/base"}')
    for read in (read_spec, Tokenizer):
        with pytest.raises(
            ModelLoadError, match=r"LoRA adapter of 'some/base', not a model.*give 'some/base', or merge"
        ):
            read(tmp_path)
    (tmp_path / ADAPTER).write_text("[]")
    with pytest.raises(ModelLoadError, match=r"LoRA adapter, not a model.*give its base model"):
        read_spec(tmp_path)


def test_the_format_of_mistrals_own_code_is_told_from_a_model(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"Mistral's and Meta's own code alone .* convert_mistral_weights_to_hf"):
        read_spec(tmp_path)


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_spec(LLAMA).hidden_size = 3  # type: ignore[misc]
