"""What a peer did on the workloads of `baton bench offline --suite h200`: vLLM 0.25.0 with CUDA graphs and FlashAttention 3,
on one H200 with random weights, and what that device reached.
"""

from __future__ import annotations

from dataclasses import dataclass

from baton.bench.kernels.measure import Ceilings

PEER_DEVICE = Ceilings(copy_gbps=4300, matmul_tflops=790)
PEER_DEVICE_NAME = "NVIDIA H200"


@dataclass(frozen=True, slots=True)
class Figure:
    """One row's target."""

    peer: float
    stretch: float
    slack: float = 1.0  # how far behind the peer still counts as level


# Milliseconds, smaller is better.
LLAMA_8B_MS = {
    "decode, batch 1": Figure(4.984, 4.2),
    "decode, batch 8": Figure(5.327, 4.5),
    "decode, batch 32": Figure(6.462, 5.3),
    "decode, batch 128": Figure(10.654, 9.0),
    "decode, batch 256": Figure(18.42, 15.0),
    "prefill 1 x 512": Figure(16.3, 12.0, 1.05),
    "prefill 1 x 2048": Figure(48.4, 45.0, 1.05),
    "prefill 1 x 8192": Figure(214.8, 195.0, 1.05),
    "prefill 1 x 32000": Figure(1153.6, 1100.0, 1.05),
}
QWEN_06B_MS = {"decode, batch 1": Figure(1.636, 1.0)}
# Output (for prefill: prompt) tokens a second, larger is better.
LLAMA_8B_RATE = {
    "prefill 32 x 2048": Figure(42_425.5, 45_000, 1 / 0.97),
    "offline 512 x (1024, 256)": Figure(6_042.7, 6_900),
    "mix of 256": Figure(9_706.6, 11_200),
}
QWEN_06B_RATE = {"mix of 256": Figure(23_584.1, 28_000)}

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "initializer_range": 0.02,
}
QWEN_06B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "initializer_range": 0.02,
}
