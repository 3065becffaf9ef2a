"""Tiny random checkpoints of every family, made with transformers, for tests that compare Baton with it.

Token ids only: no tokenizer is saved. Weights are random but far from flat, so that greedy tokens vary and
the best logit leads the second by much more than rounding.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from tests.tiny_relabelled import PEER, RELABELLED, relabel
from torch import Tensor

_SHAPE: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_TINY: dict[str, Any] = {**_SHAPE, "num_hidden_layers": 2}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.05 * i for i in range(8)],
    "long_factor": [1.0 + 0.6 * i for i in range(8)],
}
_EXPERTS: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40}
_LATENT: dict[str, Any] = {
    **_TINY,
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
}
_DEEPSEEK_YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "mscale": 1.0,
    "mscale_all_dim": 0.707,
}
_PHI3: dict[str, Any] = {**_SHAPE, "original_max_position_embeddings": 256}
_GPT2: dict[str, Any] = {
    "vocab_size": 211,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OPT: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 64,
    "ffn_dim": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_BLOOM: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 64,
    "n_layer": 2,
    "n_head": 8,
    "seq_length": 256,
    "tie_word_embeddings": False,
}
_FALCON: dict[str, Any] = {
    **{name: value for name, value in _TINY.items() if name not in ("intermediate_size", "num_key_value_heads")},
    "ffn_hidden_size": 96,
    "tie_word_embeddings": True,
}
_FALCON_NEW: dict[str, Any] = {"new_decoder_architecture": True, "num_kv_heads": 2, "tie_word_embeddings": False}

# family -> (transformers' config class, its arguments); `family-variant` where a family has more than one
# shape.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**_SHAPE, "num_key_value_heads": 4}),
    "llama-3.1": ("LlamaConfig", {**_SHAPE, "rope_parameters": _LLAMA3}),
    "llama-tied-mqa": ("LlamaConfig", {**_SHAPE, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama-biases": ("LlamaConfig", {**_SHAPE, "attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("LlamaConfig", {**_SHAPE, "head_dim": 24}),
    "llama-linear": (
        "LlamaConfig",
        {**_SHAPE, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}},
    ),
    "llama-dynamic": (
        "LlamaConfig",
        {**_SHAPE, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "llama-yarn": (
        "LlamaConfig",
        {
            **_SHAPE,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "mistral": ("MistralConfig", {**_SHAPE, "sliding_window": 13}),
    "mistral-full": ("MistralConfig", {**_SHAPE, "sliding_window": None, "head_dim": 32}),
    "qwen2": ("Qwen2Config", {**_SHAPE, "tie_word_embeddings": True}),
    "qwen2-sliding": (
        "Qwen2Config",
        {**_SHAPE, "use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {**_SHAPE, "head_dim": 32}),
    "qwen3-biases": ("Qwen3Config", {**_SHAPE, "head_dim": 24, "attention_bias": True, "tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2Config",
        {
            **_SHAPE,
            "head_dim": 32,
            "query_pre_attn_scalar": 20,
            "sliding_window": 12,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 9.0,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {**_SHAPE, "head_dim": 32, "query_pre_attn_scalar": 20, "sliding_window": 12, "layer_types": _MIXED},
    ),
    "granite": (
        "GraniteConfig",
        {
            **_TINY,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.6,
            "attention_multiplier": 0.2,
            "logits_scaling": 2.0,
        },
    ),
    "olmo2": ("Olmo2Config", _TINY),
    "smollm3": ("SmolLM3Config", {**_SHAPE, "no_rope_layer_interval": 2}),
    "glm4": ("Glm4Config", {**_TINY, "head_dim": 24}),
    "bloom": ("BloomConfig", _BLOOM),
    "cohere2": ("Cohere2Config", {**_SHAPE, "logit_scale": 0.5, "layer_types": _MIXED, "sliding_window": 12}),
    "starcoder2": ("Starcoder2Config", {**_TINY, "sliding_window": 13, "tie_word_embeddings": True}),
    "falcon": ("FalconConfig", {**_FALCON, **_FALCON_NEW}),
    "gpt-neox": ("GPTNeoXConfig", {**_TINY, "num_key_value_heads": 4}),
    "gptj": ("GPTJConfig", {**_GPT2, "n_layer": 2, "rotary_dim": 12}),
    "stablelm-12b": ("StableLmConfig", {**_TINY, "qk_layernorm": True, "use_parallel_residual": True}),
    "phi3": ("Phi3Config", {**_PHI3, "sliding_window": 50}),
    "phi3-longrope": (
        "Phi3Config",
        {**_PHI3, "max_position_embeddings": 256, "original_max_position_embeddings": 32, "rope_parameters": _LONGROPE},
    ),
    "phi3-partial": (
        "Phi3Config",
        {**_PHI3, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}},
    ),
    "gpt-oss": (
        "GptOssConfig",
        {
            **_SHAPE,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "head_dim": 24,
            "sliding_window": 13,
            "swiglu_limit": 1.5,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "truncate": False,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "qwen3-moe": ("Qwen3MoeConfig", {**_SHAPE, **_EXPERTS, "norm_topk_prob": True, "head_dim": 32}),
    "gpt2": ("GPT2Config", _GPT2),
    "gpt2-scaled": (
        "GPT2Config",
        {**_GPT2, "scale_attn_by_inverse_layer_idx": True, "n_inner": 80, "activation_function": "relu"},
    ),
    "opt": ("OPTConfig", _OPT),
    "opt-350m": ("OPTConfig", {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 48}),
    "opt-plain": (
        "OPTConfig",
        {**_OPT, "enable_bias": False, "layer_norm_elementwise_affine": False, "activation_function": "gelu"},
    ),
    "deepseek-v3": ("DeepseekV3Config", {**_LATENT, "q_lora_rank": 28, "rope_parameters": _DEEPSEEK_YARN}),
}

# Families and variants that are compared step by step alone: what engines do with them is as with those above.
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", {**_SHAPE, "num_local_experts": 5, "num_experts_per_tok": 2}),
    "mixtral-sliding": (
        "MixtralConfig",
        {**_SHAPE, "num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 13, "head_dim": 24},
    ),
    "qwen3-moe-mixed": (
        "Qwen3MoeConfig",
        {**_SHAPE, **_EXPERTS, "decoder_sparse_step": 2, "mlp_only_layers": [0], "tie_word_embeddings": True},
    ),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        {
            **_SHAPE,
            **_EXPERTS,
            "shared_expert_intermediate_size": 56,
            "mlp_only_layers": [1],
            "use_sliding_window": True,
            "sliding_window": 11,
            "max_window_layers": 1,
        },
    ),
    "deepseek-v2": (
        "DeepseekV2Config",
        {
            **_LATENT,
            "q_lora_rank": None,
            "topk_method": "group_limited_greedy",
            "routed_scaling_factor": 1.5,
            "rope_parameters": _DEEPSEEK_YARN,
        },
    ),
    "deepseek-v2-greedy": (
        "DeepseekV2Config",
        {**_LATENT, "q_lora_rank": 28, "attention_bias": True, "mlp_bias": True},
    ),
    "deepseek-v3-halves": (
        "DeepseekV3Config",
        {
            **_LATENT,
            "q_lora_rank": None,
            "rope_interleave": False,
            "attention_bias": True,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "olmoe": ("OlmoeConfig", {**_SHAPE, **_EXPERTS, "intermediate_size": 40}),
    "granite-moe": (
        "GraniteMoeConfig",
        {
            **_SHAPE,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.6,
            "logits_scaling": 2.0,
        },
    ),
    "phi-moe": ("PhimoeConfig", {**_SHAPE, "num_local_experts": 6, "lm_head_bias": True, "attention_bias": True}),
    "phi-moe-longrope": (
        "PhimoeConfig",
        {
            **_SHAPE,
            "num_local_experts": 4,
            "sliding_window": 90,
            "rope_parameters": {
                **_LONGROPE,
                "long_factor": _LONGROPE["short_factor"],  # transformers never turns by the long ones here
                "short_mscale": 1.25,
                "long_mscale": 1.25,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "gemma3-scaled": (
        "Gemma3TextConfig",
        {
            **_SHAPE,
            "head_dim": 24,
            "query_pre_attn_scalar": 9,
            "layer_types": _MIXED,
            "sliding_window": 9,
            "attn_logit_softcapping": None,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            "tie_word_embeddings": True,
        },
    ),
    "gemma3-images": (
        "Gemma3Config",
        {
            "text_config": {**_SHAPE, "head_dim": 32, "query_pre_attn_scalar": 20, "sliding_window": 12},
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 32,
                "patch_size": 16,
            },
            "tie_word_embeddings": True,
        },
    ),
    "olmo3": (
        "Olmo3Config",
        {
            **_SHAPE,
            "layer_types": _MIXED,
            "sliding_window": 9,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn",
                    "rope_theta": 5e5,
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
            },
        },
    ),
    "smollm3-sliding": (
        "SmolLM3Config",
        {**_TINY, "no_rope_layers": [0, 1], "use_sliding_window": True, "sliding_window": 9},
    ),
    "glm": ("GlmConfig", {**_TINY, "head_dim": 24}),
    "bloom-odd": ("BloomConfig", {**_BLOOM, "hidden_size": 72, "n_head": 6}),
    "mpt": (
        "MptConfig",
        {
            "vocab_size": 211,
            "d_model": 60,
            "n_layers": 2,
            "n_heads": 6,
            "max_seq_len": 256,
            "tie_word_embeddings": False,
        },
    ),
    "cohere": ("CohereConfig", {**_TINY, "logit_scale": 0.5, "tie_word_embeddings": True}),
    "cohere-norms": ("CohereConfig", {**_TINY, "logit_scale": 0.5, "use_qk_norm": True, "attention_bias": True}),
    "starcoder2-full": ("Starcoder2Config", {**_TINY, "use_bias": False, "hidden_act": "gelu"}),
    "falcon-7b": ("FalconConfig", _FALCON),
    "falcon-11b": ("FalconConfig", {**_FALCON, **_FALCON_NEW, "num_ln_in_parallel_attn": 1}),
    "falcon-serial": ("FalconConfig", {**_FALCON, "parallel_attn": False, "multi_query": False, "bias": True}),
    "gpt-neox-serial": (
        "GPTNeoXConfig",
        {**_TINY, "num_key_value_heads": 4, "use_parallel_residual": False, "attention_bias": False},
    ),
    "stablelm": ("StableLmConfig", {**_TINY, "use_qkv_bias": True}),
    "internlm3": ("InternLM3Config", {**_TINY, "head_dim": 24}),
    "internlm3-biases": ("InternLM3Config", {**_TINY, "attention_bias": True, "mlp_bias": True}),
    "llama-2-layers": ("LlamaConfig", _TINY),
    "granite-minicpm": (
        "GraniteConfig",
        {
            **_TINY,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.7,
            "attention_multiplier": 0.25,
            "logits_scaling": 4.0,
            "tie_word_embeddings": True,
        },
    ),
    "phi": ("PhiConfig", {**_TINY, "num_key_value_heads": 4}),
}

# Of these Baton has no definition: they run by transformers', on Baton's attention.
_ANY: dict[str, Any] = {**_TINY, "head_dim": 16}
ANY: dict[str, tuple[str, dict[str, Any]]] = {
    "arcee": ("ArceeConfig", _ANY),
    "exaone4": ("Exaone4Config", {**_TINY, "sliding_window": 11, "layer_types": _MIXED[:2]}),
    "nemotron": ("NemotronConfig", {**_ANY, "tie_word_embeddings": True}),
    "persimmon": ("PersimmonConfig", {**_TINY, "num_key_value_heads": 4}),
    "seed_oss": ("SeedOssConfig", {**_TINY, "head_dim": 32}),
    "vaultgemma": (
        "VaultGemmaConfig",
        {
            **_TINY,
            "head_dim": 32,
            "query_pre_attn_scalar": 20,
            "sliding_window": 12,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 9.0,
        },
    ),
}


def make_tiny(family: str, seed: int = 0) -> Any:
    """Make transformers' model of a family with random weights, fp32, eager attention."""
    class_name, arguments = (FAMILIES | MORE | ANY)[family]
    # Deep copies, because a config writes into the rope parameters that it is given.
    config = getattr(transformers, class_name)(**_copied(arguments))
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_interesting(name, parameter, family, generator))
    return model


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    return list(value) if isinstance(value, list) else value


def _interesting(name: str, parameter: Tensor, family: str, generator: torch.Generator) -> Tensor:
    """Values by which every parameter matters and greedy tokens keep changing."""
    noise = torch.randn(parameter.shape, generator=generator)
    is_opt = family.startswith("opt")
    if parameter.dim() == 1 or name.endswith("_bias"):
        # Norm weights lie around what the model starts them with, which is 0 for Gemma; biases around 0.
        return parameter + noise * (0.05 if is_opt else 0.1)
    if "embed" in name or "wte" in name or "wpe" in name:
        # Small, because a tied output would otherwise find the input token again; Gemma multiplies them by 8.
        return noise * (0.03 if family.startswith("gemma") else 0.3)
    # Larger ones make sharper attention, and rounding grows with them from layer to layer.
    return noise * ((3.0 if is_opt else 2.0) / math.sqrt(min(parameter.shape[-2:])))


def save_tiny(family: str, folder: Path | str, seed: int = 0, max_shard_size: str = "5GB") -> Path:
    """Save a tiny checkpoint of a family as transformers does (config.json, safetensors)."""
    folder = Path(folder)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if family in RELABELLED:
        save_tiny(RELABELLED[family][0], folder / PEER, seed, max_shard_size)
        relabel(family, folder)
        return folder
    make_tiny(family, seed).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def load_tiny(folder: Path | str, dtype: torch.dtype = torch.float32) -> Any:
    """Load a saved checkpoint with transformers, as what Baton is compared with."""
    peer = Path(folder) / PEER
    folder = peer if peer.is_dir() else folder
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
