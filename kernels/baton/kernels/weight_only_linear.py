"""Multiply rows by a packed weight: y = x W^T + b, x [tokens, inputs] of 16 bits, W [outputs, inputs] of four or eight.

Few rows are bound by reading W once. One row: products and sums on the ordinary cores; a tile of [outputs, parts, inputs of a
part] is summed over its inputs before each sum is scaled, so a scale is read once. Up to `MOST_ROWS`: tiles on the matrix cores,
unpacked to x's type on the way, where whole numbers are exact, and scaled in fp32 after the product of each part. A four-bit
code becomes a number without a conversion: its bits under those of 128 (bf16) or 1024 (fp16) are 128 or 1024 more than it.
Beyond, the weight is written out once a step and the library multiplies (dequantize.py).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from baton.kernels.dequantize import dequantize
from baton.kernels.few_rows_linear import add_splits
from baton.kernels.launch import INTERPRET, on_triton, overlap, start_next, tl, triton, upcasts_dot, wait_for_previous
from baton.kernels.launch_table import TileLaunch, WeightOnlyLaunch, launches_on
from baton.kernels.packed_weight import PackedWeight, dequantize_reference

MOST_ROWS = 256
"""Rows up to which tiles are unpacked inside the product."""


def weight_only_linear_reference(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Multiply in plain torch, rounded once."""
    y = F.linear(x.float(), dequantize_reference(weight, torch.float32), None if bias is None else bias.float())
    return y.to(out_dtype or x.dtype)


def weight_only_linear(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    launch: WeightOnlyLaunch | None = None,
) -> Tensor:
    """Multiply to [tokens, outputs] in `out_dtype`, x's if None; rows of x may be strided."""
    if not on_triton(x, "weight_only_linear"):
        return weight_only_linear_reference(x, weight, bias, out_dtype)
    num_rows = x.shape[0]
    if num_rows > MOST_ROWS or x.element_size() != 2:
        y = F.linear(x, dequantize(weight, x.dtype), bias)
        return y if out_dtype is None else y.to(out_dtype)
    launch = launch or launches_on(x.device).weight_only
    assert x.stride(1) == 1
    y = torch.empty((num_rows, weight.shape[0]), dtype=out_dtype or x.dtype, device=x.device)
    if num_rows == 1:
        _launch_row(x, weight, bias, y, launch)
    elif num_rows:
        _launch_tiles(x, weight, bias, y, launch.tile_for(num_rows, is_int4=weight.is_int4))
    return y


# --- Triton -----------------------------------------------------------------------------------------


def _launch_row(x: Tensor, weight: PackedWeight, bias: Tensor | None, y: Tensor, launch: WeightOnlyLaunch) -> None:
    num_outputs, num_inputs = weight.shape
    row_bytes = launch.int4_row_bytes if weight.is_int4 else launch.int8_row_bytes
    parts = min(triton.next_power_of_2(weight.data.shape[1] // weight.part), row_bytes // weight.part)
    _row_kernel[(triton.cdiv(num_outputs, launch.row_block_n),)](
        x,
        weight.data,
        weight.scales,
        weight.scales if weight.zeros is None else weight.zeros,
        weight.scales if bias is None else bias,
        y,
        num_outputs,
        num_inputs,
        weight.scales.shape[1],
        weight.group // weight.part,
        HAS_BIAS=bias is not None,
        HAS_ZEROS=weight.zeros is not None,
        IS_INT4=weight.is_int4,
        BLOCK_N=launch.row_block_n,
        PARTS=parts,
        PART=weight.part,
        num_warps=launch.row_num_warps,
        **overlap(x.shape[0], x.device),
    )


def _launch_tiles(x: Tensor, weight: PackedWeight, bias: Tensor | None, y: Tensor, tile: TileLaunch) -> None:
    num_rows = x.shape[0]
    num_outputs, num_inputs = weight.shape
    num_splits = tile.num_splits(num_outputs, num_inputs)
    num_parts = weight.data.shape[1] // weight.part
    split_parts = triton.cdiv(num_parts, num_splits)
    sums = y if num_splits == 1 else y.new_empty((num_splits, *y.shape), dtype=torch.float32)
    _tile_kernel[(triton.cdiv(num_outputs, tile.block_n), num_splits, triton.cdiv(num_rows, tile.block_m))](
        x,
        weight.data,
        weight.scales,
        weight.scales if weight.zeros is None else weight.zeros,
        weight.scales if bias is None else bias,
        sums,
        num_rows,
        num_outputs,
        num_inputs,
        x.stride(0),
        weight.scales.shape[1],
        weight.group // weight.part,
        num_parts,
        split_parts,
        HAS_BIAS=bias is not None and num_splits == 1,
        HAS_ZEROS=weight.zeros is not None,
        IS_INT4=weight.is_int4,
        HAS_GROUPS=weight.scales.shape[1] > 1,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        PART=weight.part,
        UPCAST=upcasts_dot(x),
        IN_ASM=not INTERPRET,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **overlap(num_rows, x.device),
    )
    if num_splits > 1:
        add_splits(sums, bias, y)


@triton.jit
def _row_kernel(
    x_ptr,
    data_ptr,
    scales_ptr,
    zeros_ptr,
    bias_ptr,
    y_ptr,
    num_outputs,
    num_inputs,
    num_groups,
    parts_of_group,
    HAS_BIAS: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    IS_INT4: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    STEP: tl.constexpr = 2 if IS_INT4 else 1
    start_next(OVERLAP)
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    parts, inputs = tl.arange(0, PARTS), tl.arange(0, PART)
    num_bytes = num_inputs // STEP
    num_parts = num_bytes // PART
    # What lies outside is read as the last one inside, which costs no mask, and is multiplied by an x of 0 or not stored.
    held = tl.minimum(outputs, num_outputs - 1)
    row_at = data_ptr + held[:, None, None].to(tl.int64) * num_bytes + inputs[None, None, :]
    x_at = x_ptr + parts[:, None] * (STEP * PART) + inputs[None, :]
    # The first part of the weights is on its way to registers while the kernel that computes x still runs.
    data = tl.load(row_at + tl.minimum(parts, num_parts - 1)[None, :, None] * PART)
    wait_for_previous(OVERLAP)
    acc = tl.zeros([BLOCK_N, PARTS], tl.float32)
    for start in range(0, num_parts, PARTS):
        here = start + parts
        group_at = held[:, None] * num_groups
        for half in tl.static_range(STEP):
            x = tl.load(x_at + (start * STEP + half) * PART, mask=(here < num_parts)[:, None], other=0.0).to(tl.float32)
            if IS_INT4:
                # fp32's bits of 128, and the code where one is 1
                bits = ((data.to(tl.int32) >> (4 * half)) & 15) << 16
                w = (bits | 0x43000000).to(tl.float32, bitcast=True)
            else:
                w = data.to(tl.float32)
            sums = tl.sum(w * x[None, :, :], axis=2)  # [BLOCK_N, PARTS]
            group = (tl.minimum(here, num_parts - 1) * STEP + half) // parts_of_group
            if HAS_ZEROS:
                zero = tl.load(zeros_ptr + group_at + group[None, :]).to(tl.float32)
                if IS_INT4:
                    zero += 128.0
                sums -= zero * tl.sum(x, axis=1)[None, :]
            elif IS_INT4:
                sums -= 136.0 * tl.sum(x, axis=1)[None, :]
            acc += sums * tl.load(scales_ptr + group_at + group[None, :]).to(tl.float32)
        data = tl.load(row_at + tl.minimum(here + PARTS, num_parts - 1)[None, :, None] * PART)
    y = tl.sum(acc, axis=1)
    inside_y = outputs < num_outputs
    if HAS_BIAS:
        y += tl.load(bias_ptr + outputs, mask=inside_y, other=0.0).to(tl.float32)
    tl.store(y_ptr + outputs, y.to(y_ptr.dtype.element_ty), mask=inside_y)


def _apart(bits: str) -> str:
    """Write the PTX that takes four bytes of two codes each apart, and puts each code under these bits of a number."""
    return (
        "{.reg .b32 low, high, bits; and.b32 low, $4, 0x0F0F0F0F; shr.u32 high, $4, 4; and.b32 high, high, 0x0F0F0F0F; "
        f"mov.b32 bits, {bits}; prmt.b32 $0, low, bits, 0x4140; prmt.b32 $1, low, bits, 0x4342; "
        "prmt.b32 $2, high, bits, 0x4140; prmt.b32 $3, high, bits, 0x4342;}"
    )


_TO_BF16 = tl.constexpr(_apart("0x43434343"))
_TO_FP16 = tl.constexpr(_apart("0x64646464"))


@triton.jit
def _codes(data, DTYPE: tl.constexpr):
    """Make two tiles of x's type of bytes of two codes, each number 128 (bf16) or 1024 (fp16) more than its code.

    Four bytes at once: the compiler would take each apart by itself, with several times the instructions.
    """
    low, high = tl.inline_asm_elementwise(
        _TO_BF16 if tl.bfloat16 == DTYPE else _TO_FP16,
        "=r,=r,=r,=r,r",
        [data],
        dtype=(tl.int16, tl.int16),
        is_pure=True,
        pack=4,
    )
    return low.to(DTYPE, bitcast=True), high.to(DTYPE, bitcast=True)


@triton.jit
def _unpack(data, IS_INT4: tl.constexpr, UPCAST: tl.constexpr, DTYPE: tl.constexpr, IN_ASM: tl.constexpr):
    """Make one or two tiles of x's type of stored values; how much they are above the codes is BIAS's in _tile_kernel."""
    if IS_INT4:
        if IN_ASM:
            low, high = _codes(data, DTYPE)
        else:
            low, high = (data & 15).to(tl.float32), (data >> 4).to(tl.float32)
            if not UPCAST:
                low, high = low.to(DTYPE), high.to(DTYPE)
    else:
        low = data.to(tl.float32)
        if not UPCAST:
            low = low.to(DTYPE)
        high = low
    return low, high


@triton.jit(do_not_specialize=["num_rows"])
def _tile_kernel(
    x_ptr,
    data_ptr,
    scales_ptr,
    zeros_ptr,
    bias_ptr,
    y_ptr,
    num_rows,
    num_outputs,
    num_inputs,
    x_stride,
    num_groups,
    parts_of_group,
    num_parts,
    split_parts,
    HAS_BIAS: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    IS_INT4: tl.constexpr,
    HAS_GROUPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PART: tl.constexpr,
    UPCAST: tl.constexpr,
    IN_ASM: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    STEP: tl.constexpr = 2 if IS_INT4 else 1
    # What a number that is made of a code's bits has beyond the code.
    ABOVE: tl.constexpr = (
        0.0 if not IN_ASM or not IS_INT4 else 128.0 if x_ptr.dtype.element_ty == tl.bfloat16 else 1024.0
    )
    start_next(OVERLAP)
    rows = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    first, end = split * split_parts, tl.minimum((split + 1) * split_parts, num_parts)
    inputs = tl.arange(0, PART)
    inside_x, inside_y = (rows < num_rows)[:, None], outputs < num_outputs
    held = tl.minimum(outputs, num_outputs - 1)
    data_at = data_ptr + held[:, None].to(tl.int64) * (num_inputs // STEP) + first * PART + inputs[None, :]
    group_at = held * num_groups
    x_at = x_ptr + rows[:, None].to(tl.int64) * x_stride + first * (STEP * PART) + inputs[None, :]
    wait_for_previous(OVERLAP)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for part in range(first, end):
        halves = _unpack(tl.load(data_at), IS_INT4, UPCAST, x_ptr.dtype.element_ty, IN_ASM)
        for half in tl.static_range(STEP):
            x = tl.load(x_at + half * PART, mask=inside_x, other=0.0)
            if UPCAST:
                x = x.to(tl.float32)
            group = (part * STEP + half) // parts_of_group
            w = halves[half]
            if HAS_ZEROS:
                zero = tl.load(zeros_ptr + group_at + group).to(tl.float32) + ABOVE
                w -= zero.to(w.dtype)[:, None]
            elif IS_INT4:
                w -= ABOVE + 8.0
            if HAS_GROUPS:
                scale = tl.load(scales_ptr + group_at + group).to(tl.float32)
                acc += tl.dot(x, tl.trans(w)) * scale[None, :]
            else:
                acc = tl.dot(x, tl.trans(w), acc)
        data_at += PART
        x_at += STEP * PART
    if not HAS_GROUPS:
        acc *= tl.load(scales_ptr + held).to(tl.float32)[None, :]
    if HAS_BIAS:
        acc += tl.load(bias_ptr + outputs, mask=inside_y, other=0.0).to(tl.float32)[None, :]
    y_at = y_ptr + (split * num_rows + rows[:, None]).to(tl.int64) * num_outputs + outputs[None, :]
    tl.store(y_at, acc.to(y_ptr.dtype.element_ty), mask=inside_x & inside_y[None, :])
