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
