"""Checkpoints of families that transformers does not have, made of those of a family that computes the same.

The original lies in a folder `peer` within, as what Baton is compared with.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
Config = dict[str, Any]

PEER = "peer"
_INTERNLM2 = {
    "embed_tokens": "tok_embeddings",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "lm_head": "output",
}


def _internlm2(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    num_kv_heads = config["num_key_value_heads"]
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    made = {}
    for name, tensor in tensors.items():
        if "q_proj" in name:
            parts = [tensors[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            by_head = [part.view(num_kv_heads, -1, head_dim, part.shape[1]) for part in parts]
            fused = torch.cat(by_head, dim=1).reshape(-1, tensor.shape[1])
            made[name.replace("self_attn.q_proj", "attention.wqkv")] = fused
        elif "k_proj" not in name and "v_proj" not in name:
            for old, new in _INTERNLM2.items():
                name = name.replace(old, new)
            made[name] = tensor
    return config | {"model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"], "bias": False}, made


def _minicpm(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    return config | {
        "model_type": "minicpm",
        "architectures": ["MiniCPMForCausalLM"],
        "scale_emb": config.pop("embedding_multiplier"),
        "scale_depth": config.pop("residual_multiplier") * config["num_hidden_layers"] ** 0.5,
        "dim_model_base": config["hidden_size"] / config.pop("logits_scaling"),
    }, tensors


# family -> the one that computes the same, and how a checkpoint of it becomes one of this
RELABELLED: dict[str, tuple[str, Callable[[Config, Tensors], tuple[Config, Tensors]]]] = {
    "internlm2": ("llama-2-layers", _internlm2),
    "minicpm": ("granite-minicpm", _minicpm),
}


def relabel(family: str, folder: Path) -> None:
    """Make the checkpoint beside the peer's that is there."""
    peer = folder / PEER
    config, tensors = RELABELLED[family][1](
        json.loads((peer / "config.json").read_text()), load_file(peer / "model.safetensors")
    )
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
