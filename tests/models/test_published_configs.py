"""config.json of published checkpoints: what matters of it, as their folders on the hub have it."""

from __future__ import annotations

from typing import Any

import pytest

from baton.errors import ModelLoadError
from baton.models.config import make_spec

GEMMA_3_4B_IT: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "eos_token_id": [1, 106],
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}
FALCON_7B: dict[str, Any] = {
    "alibi": False,
    "architectures": ["FalconForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_falcon.FalconConfig",
        "AutoModel": "modeling_falcon.FalconModel",
        "AutoModelForCausalLM": "modeling_falcon.FalconForCausalLM",
    },
    "bias": False,
    "eos_token_id": 11,
    "hidden_size": 4544,
    "layer_norm_epsilon": 1e-05,
    "model_type": "falcon",
    "multi_query": True,
    "new_decoder_architecture": False,
    "num_attention_heads": 71,
    "num_hidden_layers": 32,
    "parallel_attn": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 65024,
}
INTERNLM2_5_7B: dict[str, Any] = {
    "architectures": ["InternLM2ForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_internlm2.InternLM2Config",
        "AutoModel": "modeling_internlm2.InternLM2ForCausalLM",
        "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
    },
    "bias": False,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "internlm2",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "rope_theta": 1000000,
    "torch_dtype": "bfloat16",
    "vocab_size": 92544,
}
PYTHIA_70M: dict[str, Any] = {
    "architectures": ["GPTNeoXForCausalLM"],
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_parallel_residual": True,
    "vocab_size": 50304,
}


def test_gemma_3_with_images_is_its_text_model_with_two_rotations() -> None:
    spec = make_spec(GEMMA_3_4B_IT)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.vocab_size) == (8, 4, 256, 262208)
    assert (spec.max_model_len, spec.dtype, spec.eos_token_ids) == (131072, "bfloat16", (1, 106))
    assert spec.windows[:7] == (1024,) * 5 + (None, 1024)
    near, far = spec.ropes
    assert (near.frequencies[0], near.frequencies[1]) == pytest.approx((1, 1e4 ** (-1 / 128)))
    assert (far.frequencies[0], far.frequencies[1]) == pytest.approx((1 / 8, 1e6 ** (-1 / 128) / 8))


def test_a_gemma_3_whose_text_is_not_described_is_refused() -> None:
    with pytest.raises(ModelLoadError, match=r"text_config=None; it must describe the decoder"):
        make_spec(GEMMA_3_4B_IT | {"text_config": None})


def test_falcon_7b_has_one_kv_head_and_the_code_it_names_is_not_needed() -> None:
    spec = make_spec(FALCON_7B)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.max_model_len) == (71, 1, 64, 2048)
    assert spec.tie_word_embeddings


def test_a_scaling_that_is_no_set_of_parameters_is_refused_by_name() -> None:
    text = GEMMA_3_4B_IT["text_config"] | {"rope_scaling": "linear"}
    with pytest.raises(ModelLoadError, match="rope_scaling='linear'; it must be a set of parameters"):
        make_spec(GEMMA_3_4B_IT | {"text_config": text})


def test_falcon_with_position_biases_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="alibi=True; Baton does not run this variant"):
        make_spec(FALCON_7B | {"alibi": True})


def test_internlm_2_and_pythia_as_they_were_published() -> None:
    assert make_spec(INTERNLM2_5_7B).num_kv_heads == 8
    assert [rope.dim for rope in make_spec(PYTHIA_70M).ropes] == [16]


def test_a_refusal_names_the_field_as_the_family_does() -> None:
    with pytest.raises(ModelLoadError, match="layer_norm_eps=-1; it must be a number above 0"):
        make_spec(PYTHIA_70M | {"layer_norm_eps": -1})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"no_rope_layers": [1, 2, 0]}, "no_rope_layers=.*must list 2 of 0, 1"),
        ({"layer_types": ["full_attention", "other"]}, "layer_types=.*must list 2 of sliding_attention"),
    ],
)
def test_smollm_3_with_lists_that_do_not_fit_is_refused(changes: dict[str, Any], said: str) -> None:
    raw = {
        "architectures": ["SmolLM3ForCausalLM"],
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
    }
    with pytest.raises(ModelLoadError, match=said):
        make_spec(raw | changes)
