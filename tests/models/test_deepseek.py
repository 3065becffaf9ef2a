"""DeepSeek's config.json: the published one, and numbers that cannot be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from baton.errors import ModelLoadError
from baton.models.config import make_spec
from baton.models.loader import load_model
from baton.models.spec import MoESpec

DEEPSEEK_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_deepseek.DeepseekV3Config",
        "AutoModel": "modeling_deepseek.DeepseekV3Model",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM",
    },
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "scoring_func": "sigmoid",
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
    "vocab_size": 129280,
}


def test_the_published_config_is_read() -> None:
    spec = make_spec(DEEPSEEK_V3)
    assert [isinstance(layer.mlp, MoESpec) for layer in spec.layers] == [False] * 3 + [True] * 58
    attention = spec.layers[0].attention
    assert attention.rope is not None
    assert (attention.rope.scale, attention.rope.dim, attention.rope.interleaved) == (1.0, 64, True)
    assert attention.scale == pytest.approx(0.1352337788608801)  # 192 ** -0.5 * (0.1 * ln 40 + 1) ** 2
    assert spec.max_model_len == 163840


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"topk_group": 9}, "topk_group=9; it must be at most n_group=8"),
        ({"n_routed_experts": 12}, "n_group=8; each group must have at least 2 experts"),
        ({"n_routed_experts": 100}, "n_group=8; it must divide the number of experts, 100"),
        ({"scoring_func": "softmax"}, "scoring_func='softmax'"),
        ({"topk_method": "greedy"}, "topk_method='greedy'"),
        ({"qk_rope_head_dim": 7}, "qk_rope_head_dim=7; it must be even"),
        ({"kv_lora_rank": None}, "lacks kv_lora_rank"),
    ],
    ids=["groups", "group", "division", "scores", "method", "rope", "rank"],
)
def test_numbers_that_cannot_be_are_refused(changed: dict[str, object], named: str) -> None:
    with pytest.raises(ModelLoadError, match=re.escape(named)):
        make_spec(DEEPSEEK_V3 | changed)


def test_what_a_latent_is_taken_apart_with_must_not_be_quantized(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tiny_checkpoint("deepseek-v3")
    model = load_model(folder, dtype="float32", progress=False, quantization="int8")
    assert model.spec.latent is not None
    raw = json.loads((folder / "config.json").read_text())
    quantized = {"quant_method": "fp8", "weight_block_size": [8, 8], "activation_scheme": "dynamic"}
    (tmp_path / "config.json").write_text(json.dumps(raw | {"quantization_config": quantized}))
    with pytest.raises(ModelLoadError, match=r"layers\.0\.self_attn\.kv_b_proj is quantized"):
        load_model(tmp_path, progress=False, load_format="dummy")


def test_of_v2_weights_that_are_made_to_sum_to_one_are_refused(tiny_checkpoint: Callable[[str], Path]) -> None:
    raw = json.loads((tiny_checkpoint("deepseek-v2") / "config.json").read_text())
    with pytest.raises(ModelLoadError, match="norm_topk_prob=True"):
        make_spec(raw | {"norm_topk_prob": True})
