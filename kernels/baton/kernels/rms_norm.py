"""RMSNorm, alone and after a residual addition.

y = x / sqrt(mean(x^2) + eps) * (weight_offset + weight), the statistic and the product in fp32, rounded once
at the end. x [tokens, hidden] (any leading dimensions, rows strided); weight [hidden]. Bound by memory: read
x (and the residual), write y (and the new residual). Source: Zhang and Sennrich, arXiv 1910.07467;
weight_offset = 1 is Gemma's form.
"""

import torch
from torch import Tensor

from baton.kernels.launch import on_triton, overlap, start_next, tl, triton, wait_for_previous


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, weight_offset: float = 0.0) -> Tensor:
    """Normalize in plain torch: one reduction and two products, the rest on one number a row."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = norm.square_().mul_(1.0 / x.shape[-1]).add_(eps).rsqrt_()  # [tokens, 1]
    if weight_offset:
        weight = weight.float() + weight_offset
    y: Tensor = (x * scale).mul_(weight)
    return y.to(x.dtype)


def add_rms_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, weight_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Add in place into `residual`, then normalize."""
    residual.add_(x)
    return rms_norm_reference(residual, weight, eps, weight_offset), residual


def rms_norm(x: Tensor, weight: Tensor, eps: float, weight_offset: float = 0.0) -> Tensor:
    """Normalize x over its last dimension and scale it, in x's dtype."""
    if not on_triton(x, "rms_norm"):
        return rms_norm_reference(x, weight, eps, weight_offset)
    return _launch(x, None, weight, eps, weight_offset)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, weight_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return (norm(x + residual), x + residual); the sum is written into `residual`, which the caller gives up."""
    if not on_triton(x, "rms_norm"):
        return add_rms_norm_reference(x, residual, weight, eps, weight_offset)
    return _launch(x, residual, weight, eps, weight_offset), residual


# --- Triton -----------------------------------------------------------------------------------------


def _launch(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, weight_offset: float) -> Tensor:
    hidden = x.shape[-1]
    rows = x.reshape(-1, hidden)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if rows.shape[0] == 0:
        return y
    added = rows if residual is None else residual.view(-1, hidden)
    block = triton.next_power_of_2(hidden)
    _rms_norm_kernel[(rows.shape[0],)](
        rows,
        added,
        weight,
        y,
        rows.stride(0),
        added.stride(0),
        hidden,
        eps,
        weight_offset,
        HAS_RESIDUAL=residual is not None,
        BLOCK=block,
        # 16 elements a thread: 32-byte loads, and one row's latency stays short at batch 1.
        num_warps=min(16, max(1, block // 512)),
        **overlap(rows.shape[0], x.device),
    )
    return y


@triton.jit
def _rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    x_stride,
    residual_stride,
    hidden,
    eps,
    weight_offset,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < hidden
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32) + weight_offset
    wait_for_previous(OVERLAP)
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        at = residual_ptr + row * residual_stride + columns
        x = (x.to(tl.float32) + tl.load(at, mask=inside, other=0.0).to(tl.float32)).to(residual_ptr.dtype.element_ty)
        tl.store(at, x, mask=inside)
    x = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / hidden + eps)
    tl.store(y_ptr + row * hidden + columns, (x * scale * weight).to(y_ptr.dtype.element_ty), mask=inside)
