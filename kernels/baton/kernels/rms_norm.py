"""RMSNorm, alone and after a residual addition.

y = x / sqrt(mean(x^2) + eps) * (weight_offset + weight), the statistic and the product in fp32, rounded once at the end.
x [tokens, hidden] (any leading dimensions, rows strided); weight [hidden]. Bound by memory: read x (and the residual), write y
(and the new residual). Source: Zhang and Sennrich, arXiv 1910.07467; weight_offset = 1 is Gemma's form.
"""

import torch
from torch import Tensor

from baton.kernels.launch import on_triton


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, weight_offset: float = 0.0) -> Tensor:
    """Normalize in plain torch: one reduction and two products, the rest on one number a row."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = norm.square_().mul_(1.0 / x.shape[-1]).add_(eps).rsqrt_()  # [tokens, 1]
    if weight_offset:
        weight = weight.float() + weight_offset
    return (x * scale).mul_(weight).to(x.dtype)


def add_rms_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, weight_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Add in place into `residual`, then normalize."""
    residual.add_(x)
    return rms_norm_reference(residual, weight, eps, weight_offset), residual


def rms_norm(x: Tensor, weight: Tensor, eps: float, weight_offset: float = 0.0) -> Tensor:
    """Give x, normalized over its last dimension and scaled, in x's dtype."""
    return rms_norm_reference(x, weight, eps, weight_offset)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, weight_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Give (norm(x + residual), x + residual); the sum is written into `residual`, which the caller gives up."""
    return add_rms_norm_reference(x, residual, weight, eps, weight_offset)
