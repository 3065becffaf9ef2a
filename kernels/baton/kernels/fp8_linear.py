"""Multiply many rows by a weight of eight-bit floats in eight bits: y = (xs xq) (ws wq)^T + b, xq and wq e4m3.

One scale a row and one an output: the library's product, which scales its sums once. Scales of 128 inputs: a kernel that scales
the sum of each 128 inputs, in fp32. Bound by the matrix cores, which are twice as fast for eight bits as for sixteen.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from baton.kernels.launch import FEW_ROWS, INTERPRET, on_triton, tl, triton
from baton.kernels.packed_weight import PackedWeight, dequantize_reference
from baton.kernels.quantize_rows import quantize_by, quantize_rows

BLOCK = 128
"""Inputs of a scale that the kernel takes."""


@cache
def multiplies_fp8(device: torch.device) -> bool:
    """Whether a device has e4m3 at all; a GPU that is only planned for is taken to have it."""
    if device.type != "cuda":
        return False
    return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= (8, 9)


def takes_fp8(x: Tensor, weight: PackedWeight) -> bool:
    """Whether `fp8_linear` is the faster one: fewer rows are bound by reading the weight, and need not lose bits of x.

    With scales of 128 inputs it is not, yet: 430 TFLOP/s on an H100, where the weight written out and multiplied in 16 bits
    gives 650.
    """
    num_outputs, num_inputs = weight.shape
    return (
        x.is_cuda
        and x.shape[0] > FEW_ROWS
        and torch.cuda.get_device_capability(x.device) >= (9, 0)
        and num_outputs % 16 == 0
        and num_inputs % BLOCK == 0
        and weight.group == num_inputs
    )


def fp8_linear_reference(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    x_scale: Tensor | None = None,
) -> Tensor:
    """Multiply in plain torch, x rounded to eight bits and the result once."""
    xq, xs = _quantized(x, weight, x_scale)
    group = x.shape[1] // xs.shape[1]
    x_rounded = xq.float() * xs.repeat_interleave(group, 1)
    y = F.linear(x_rounded, dequantize_reference(weight, torch.float32), None if bias is None else bias.float())
    return y.to(out_dtype or x.dtype)


def fp8_linear(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    x_scale: Tensor | None = None,
) -> Tensor:
    """Multiply to [tokens, outputs] in `out_dtype`, x's if None.

    x_scale: the checkpoint's one scale of activations; None: each row's own.
    """
    if not on_triton(x, "fp8_linear"):
        return fp8_linear_reference(x, weight, bias, out_dtype, x_scale)
    xq, xs = _quantized(x, weight, x_scale)
    wanted = out_dtype or x.dtype
    if weight.scales.shape[1] > 1:
        return _block_product(xq, xs, weight, bias, wanted)
    if INTERPRET:
        y = F.linear(xq.float() * xs, weight.data.float() * weight.scales)
    else:
        # The library scales rows into bf16 alone.
        y = torch._scaled_mm(
            xq, weight.data.t(), xs, weight.scales.view(1, -1), out_dtype=torch.bfloat16, use_fast_accum=True
        )
    y = y.to(wanted)
    return y if bias is None else y.add_(bias)


def _quantized(x: Tensor, weight: PackedWeight, x_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    if x_scale is None:
        return quantize_rows(x, torch.float8_e4m3fn, weight.group)
    return quantize_by(x, x_scale, torch.float8_e4m3fn), x_scale.view(1, 1).expand(len(x), 1).contiguous()


# --- Triton -----------------------------------------------------------------------------------------

_BLOCK_M, _BLOCK_N = 128, 128
_ROWS_SIDE_BY_SIDE = 8


def _block_product(xq: Tensor, xs: Tensor, weight: PackedWeight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    num_rows, num_inputs = xq.shape
    num_outputs = weight.shape[0]
    y = torch.empty((num_rows, num_outputs), dtype=dtype, device=xq.device)
    _block_kernel[(triton.cdiv(num_rows, _BLOCK_M) * triton.cdiv(num_outputs, _BLOCK_N),)](
        xq,
        xs,
        weight.data,
        weight.scales,
        weight.scales if bias is None else bias,
        y,
        num_rows,
        num_outputs,
        num_inputs,
        HAS_BIAS=bias is not None,
        BLOCK_M=_BLOCK_M,
        BLOCK_N=_BLOCK_N,
        BLOCK_K=BLOCK,
        SIDE=_ROWS_SIDE_BY_SIDE,
        UPCAST=INTERPRET,
        num_warps=8,
        num_stages=3,
    )
    return y


@triton.jit(do_not_specialize=["num_rows"])
def _block_kernel(
    x_ptr,
    x_scales_ptr,
    weight_ptr,
    scales_ptr,
    bias_ptr,
    y_ptr,
    num_rows,
    num_outputs,
    num_inputs,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SIDE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    # Tiles of SIDE rows of tiles follow one another down the outputs, so that both operands stay in the second-level cache.
    tiles_m, tiles_n = tl.cdiv(num_rows, BLOCK_M), tl.cdiv(num_outputs, BLOCK_N)
    program = tl.program_id(0)
    first = program // (SIDE * tiles_n) * SIDE
    side = tl.minimum(tiles_m - first, SIDE)
    tile_m = first + program % (SIDE * tiles_n) % side
    tile_n = program % (SIDE * tiles_n) // side
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    outputs = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    held_rows, held = tl.minimum(rows, num_rows - 1), tl.minimum(outputs, num_outputs - 1)
    inputs = tl.arange(0, BLOCK_K)
    num_groups = num_inputs // BLOCK_K
    x_at = x_ptr + held_rows[:, None].to(tl.int64) * num_inputs + inputs[None, :]
    w_at = weight_ptr + held[None, :].to(tl.int64) * num_inputs + inputs[:, None]
    x_scale_at, scale_at = x_scales_ptr + held_rows * num_groups, scales_ptr + held * num_groups
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for _ in range(num_groups):
        x, w = tl.load(x_at), tl.load(w_at)
        if UPCAST:
            x, w = x.to(tl.float32), w.to(tl.float32)
        acc += tl.dot(x, w) * tl.load(x_scale_at)[:, None] * tl.load(scale_at)[None, :]
        x_at += BLOCK_K
        w_at += BLOCK_K
        x_scale_at += 1
        scale_at += 1
    if HAS_BIAS:
        acc += tl.load(bias_ptr + held).to(tl.float32)[None, :]
    y_at = y_ptr + rows[:, None].to(tl.int64) * num_outputs + outputs[None, :]
    inside = (rows < num_rows)[:, None] & (outputs < num_outputs)[None, :]
    tl.store(y_at, acc.to(y_ptr.dtype.element_ty), mask=inside)
