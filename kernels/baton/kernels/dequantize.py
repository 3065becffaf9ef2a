"""Write a packed weight out as a matrix: w[n, k] = scale[n, k / group] (code[n, k] - zero[n, k / group]), rounded once.

Bound by what it writes. Products of many rows take the matrix to the library: at 8192 rows of an 8B model's widest layer it
is 4 % of the product's time, where a Triton product that unpacks its own tiles loses a quarter to the library.
"""

from __future__ import annotations

import torch
from torch import Tensor

from baton.kernels.launch import on_triton, tl, triton
from baton.kernels.packed_weight import PackedWeight, dequantize_reference


def dequantize(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Return the weight as [outputs, inputs] of `dtype`."""
    if not on_triton(weight.data, "dequantize"):
        return dequantize_reference(weight, dtype)
    num_outputs, num_inputs = weight.shape
    out = torch.empty((num_outputs, num_inputs), dtype=dtype, device=weight.data.device)
    num_bytes = weight.data.shape[1]
    _dequantize_kernel[(triton.cdiv(num_outputs, _BLOCK_N), num_bytes // weight.part)](
        weight.data,
        weight.scales,
        weight.scales if weight.zeros is None else weight.zeros,
        out,
        num_outputs,
        num_inputs,
        weight.scales.shape[1],
        weight.group,
        IS_INT4=weight.is_int4,
        HAS_ZEROS=weight.zeros is not None,
        PART=weight.part,
        BLOCK_N=_BLOCK_N,
        num_warps=4,
    )
    return out


# --- Triton -----------------------------------------------------------------------------------------

_BLOCK_N = 32


@triton.jit
def _dequantize_kernel(
    data_ptr,
    scales_ptr,
    zeros_ptr,
    out_ptr,
    num_outputs,
    num_inputs,
    num_groups,
    group,
    IS_INT4: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(1)
    inputs = tl.arange(0, PART)
    inside = (outputs < num_outputs)[:, None]
    STEP: tl.constexpr = 2 if IS_INT4 else 1
    held = tl.minimum(outputs, num_outputs - 1)
    data = tl.load(data_ptr + held[:, None].to(tl.int64) * (num_inputs // STEP) + part * PART + inputs[None, :])
    for half in tl.static_range(STEP):
        first = (part * STEP + half) * PART
        at = held * num_groups + first // group
        scale = tl.load(scales_ptr + at).to(tl.float32)
        values = ((data >> (4 * half)) & 15).to(tl.float32) if IS_INT4 else data.to(tl.float32)
        if HAS_ZEROS:
            values -= tl.load(zeros_ptr + at).to(tl.float32)[:, None]
        elif IS_INT4:
            values -= 8.0
        values *= scale[:, None]
        to = out_ptr + outputs[:, None].to(tl.int64) * num_inputs + first + inputs[None, :]
        tl.store(to, values.to(out_ptr.dtype.element_ty), mask=inside)
