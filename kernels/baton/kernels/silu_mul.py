"""The gate of a feed-forward layer: act(gate) * up, with act = SiLU (Llama, Qwen) or GELU in its tanh form (Gemma).

gate_up [tokens, 2 * inner], the gate first -> [tokens, inner]. SiLU(x) = x / (1 + exp(-x)); GELU(x) = 0.5 x (1 + tanh(sqrt(2 / pi)
(x + 0.044715 x^3))). Bound by memory: read 2 * inner, write inner. Source: Shazeer, arXiv 2002.05202.
"""

import torch.nn.functional as F
from torch import Tensor

from baton.kernels.launch import on_triton


def silu_mul_reference(gate_up: Tensor) -> Tensor:
    """Gate with SiLU in plain torch."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def gelu_tanh_mul_reference(gate_up: Tensor) -> Tensor:
    """Gate with GELU's tanh form in plain torch."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh").mul_(up)


def silu_mul(gate_up: Tensor) -> Tensor:
    """Give silu(gate) * up, [tokens, inner]."""
    return silu_mul_reference(gate_up)


def gelu_tanh_mul(gate_up: Tensor) -> Tensor:
    """Give gelu_tanh(gate) * up, [tokens, inner]."""
    return gelu_tanh_mul_reference(gate_up)
