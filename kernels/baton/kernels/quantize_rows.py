"""Scale rows to eight bits: q = x / s, s = max |x| / largest, one s a row or one a row and group of neighbouring numbers.

e4m3 has 448 as its largest number, int8 127; a row of zeros gets a scale of 1e-12 and stays zeros. Bound by reading x once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from baton.kernels.launch import on_triton, tl, triton

LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
LEAST = 1e-12


def quantize_rows_reference(x: Tensor, dtype: torch.dtype, group: int | None = None) -> tuple[Tensor, Tensor]:
    """Quantize in plain torch."""
    groups = x.float().view(len(x), -1, group or x.shape[1])
    scales = (groups.abs().amax(-1) / LARGEST[dtype]).clamp_(min=LEAST)
    return _rounded((groups / scales[:, :, None]).view(x.shape), dtype), scales


def quantize_rows(x: Tensor, dtype: torch.dtype, group: int | None = None) -> tuple[Tensor, Tensor]:
    """Quantize [rows, numbers]; the scales are [rows, groups] fp32. The rows may be strided."""
    if not on_triton(x, "quantize_rows"):
        return quantize_rows_reference(x.contiguous(), dtype, group)
    num_rows, length = x.shape
    group = group or length
    assert x.stride(1) == 1
    assert length % group == 0
    num_groups = length // group
    out = torch.empty((num_rows, length), dtype=dtype, device=x.device)
    scales = torch.empty((num_rows, num_groups), dtype=torch.float32, device=x.device)
    if num_rows:
        _quantize_kernel[(num_rows,)](
            x,
            out,
            scales,
            x.stride(0),
            num_groups,
            group,
            LARGEST[dtype],
            IS_INT8=dtype == torch.int8,
            GROUPS=triton.next_power_of_2(num_groups),
            GROUP=triton.next_power_of_2(group),
            num_warps=8 if length >= 4096 else 4,
        )
    return out, scales


def quantize_by(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Quantize by a scale that is known, one number."""
    return _rounded(x.float() / scale, dtype)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.int8:
        return (x + 0.5).floor_().clamp_(-128, 127).to(dtype)
    return x.clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)


# --- Triton -----------------------------------------------------------------------------------------


@triton.jit
def _quantize_kernel(
    x_ptr,
    out_ptr,
    scales_ptr,
    x_stride,
    num_groups,
    group,
    largest,
    IS_INT8: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    groups, within = tl.arange(0, GROUPS), tl.arange(0, GROUP)
    at = groups[:, None] * group + within[None, :]
    inside = (groups < num_groups)[:, None] & (within < group)[None, :]
    x = tl.load(x_ptr + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), axis=1) / largest, 1e-12)
    x = tl.clamp(x / scale[:, None], -largest, largest)
    if IS_INT8:
        x = tl.floor(x + 0.5)
    tl.store(out_ptr + row * (num_groups * group) + at, x.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(scales_ptr + row * num_groups + groups, scale, mask=groups < num_groups)
