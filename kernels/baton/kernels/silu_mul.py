"""The gate of a feed-forward layer: act(gate) * up, with act = SiLU (Llama, Qwen) or GELU in its tanh form
(Gemma).

gate_up [tokens, 2 * inner], the gate first -> [tokens, inner]. SiLU(x) = x / (1 + exp(-x)); GELU(x) = 0.5 x
(1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))). Bound by memory: read 2 * inner, write inner. Source: Shazeer,
arXiv 2002.05202.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from baton.kernels.launch import on_triton, overlap, start_next, tl, triton, wait_for_previous


def silu_mul_reference(gate_up: Tensor) -> Tensor:
    """Gate with SiLU in plain torch."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def gelu_tanh_mul_reference(gate_up: Tensor) -> Tensor:
    """Gate with GELU's tanh form in plain torch."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh").mul_(up)


def silu_mul(gate_up: Tensor) -> Tensor:
    """Compute silu(gate) * up, [tokens, inner]."""
    return _launch(gate_up, False) if on_triton(gate_up, "silu_mul") else silu_mul_reference(gate_up)


def gelu_tanh_mul(gate_up: Tensor) -> Tensor:
    """Compute gelu_tanh(gate) * up, [tokens, inner]."""
    return _launch(gate_up, True) if on_triton(gate_up, "gelu_tanh_mul") else gelu_tanh_mul_reference(gate_up)


# --- Triton -----------------------------------------------------------------------------------------

# 8 elements a thread, one 16-byte load of bf16 each from the gate and the value.
_BLOCK = 1024


def _launch(gate_up: Tensor, is_gelu: bool) -> Tensor:
    num_tokens, inner = gate_up.shape[0], gate_up.shape[1] // 2
    y = torch.empty((num_tokens, inner), dtype=gate_up.dtype, device=gate_up.device)
    if num_tokens:
        grid = (num_tokens, triton.cdiv(inner, _BLOCK))
        _gate_kernel[grid](
            gate_up,
            y,
            gate_up.stride(0),
            inner,
            IS_GELU=is_gelu,
            BLOCK=_BLOCK,
            num_warps=4,
            **overlap(num_tokens, gate_up.device),
        )
    return y


@triton.jit
def _gate_kernel(gate_up_ptr, y_ptr, stride, inner, IS_GELU: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    start_next(OVERLAP)
    wait_for_previous(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < inner
    gate = tl.load(gate_up_ptr + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * stride + inner + columns, mask=inside, other=0.0).to(tl.float32)
    # GELU's 0.5 (1 + tanh(u)) is 1 / (1 + exp(-2u)), so both gates have SiLU's form.
    inner_gate = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate) if IS_GELU else gate
    y = gate / (1.0 + tl.exp(-inner_gate)) * up
    tl.store(y_ptr + row * inner + columns, y.to(y_ptr.dtype.element_ty), mask=inside)
