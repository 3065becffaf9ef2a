"""Multiply a few rows by a weight, as a decode step does: y = x W^T + b, x [tokens, inputs], W [outputs, inputs].

Bound by reading W once. The library waits for the kernel before it, and its layers together read at 80 to 85 % of the copy
bandwidth; here each program fetches the weights that it needs first before it waits (launch.py, `overlap`), so that memory is
hardly idle between kernels. On an H100, the products, norms and gates of all layers in one CUDA graph, ms:

    rows                   1     4     8    16    32    64   128
    8B      cuBLAS      5.44  5.50  5.53  5.59  5.54  5.75  6.11
            here        4.65  4.99  5.02  5.04  5.27  5.40     -     (the copy bandwidth allows 4.62)
    0.6B    cuBLAS      0.86  0.87  0.87  0.88  0.92  0.93  0.96
            here        0.50  0.70  0.73  0.73  0.78  0.79     -     (0.29)

One row: products and sums on the ordinary cores, four outputs and up to 2048 inputs a step, whose loads are all in flight at once. Up to
16: the narrowest tile of the matrix cores, 16 outputs a program. Up to 64: tiles of 64 rows, whose few programs split a long inner
dimension where they would not fill the device; the splits are summed in order by a second kernel. Beyond, the library.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from baton.kernels.launch import FEW_ROWS, on_triton, overlap, start_next, tl, triton, upcasts_dot, wait_for_previous
from baton.kernels.launch_table import FewRowsLaunch, TileLaunch, launches_on


def few_rows_linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Multiply in plain torch, rounded once."""
    dtype = x.dtype
    x, weight = x.float(), weight.float()
    return F.linear(x, weight, None if bias is None else bias.float()).to(out_dtype or dtype)


def takes_few_rows(x: Tensor, weight: Tensor) -> bool:
    """Whether `few_rows_linear` takes it: few rows of two-byte numbers, on a device where that made whole steps faster."""
    return (
        0 < x.shape[0] <= FEW_ROWS
        and x.is_cuda
        and x.element_size() == 2
        and weight.shape[1] % 16 == 0
        and on_triton(x, "few_rows_linear")
        and launches_on(x.device).few_rows is not None
    )


def few_rows_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    launch: FewRowsLaunch | None = None,
) -> Tensor:
    """Multiply to [tokens, outputs] in `out_dtype`, x's if None: 1 to 64 rows, which may be strided."""
    if not on_triton(x, "few_rows_linear"):
        return few_rows_linear_reference(x, weight, bias, out_dtype)
    launch = launch or launches_on(x.device).few_rows
    assert launch is not None
    assert 0 < x.shape[0] <= FEW_ROWS
    assert x.stride(1) == 1
    assert weight.is_contiguous()
    y = torch.empty((x.shape[0], weight.shape[0]), dtype=out_dtype or x.dtype, device=x.device)
    if x.shape[0] == 1:
        _launch_row(x, weight, bias, y, launch)
    else:
        _launch_tiles(x, weight, bias, y, launch.tile_for(*y.shape))
    return y


# --- Triton -----------------------------------------------------------------------------------------


def _launch_row(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, launch: FewRowsLaunch) -> None:
    num_outputs, num_inputs = weight.shape
    block_k = min(launch.row_block_k, triton.next_power_of_2(num_inputs))
    _row_kernel[(triton.cdiv(num_outputs, launch.row_block_n),)](
        x,
        weight,
        weight if bias is None else bias,
        y,
        num_outputs,
        num_inputs,
        HAS_BIAS=bias is not None,
        IS_WHOLE=num_inputs % block_k == 0,
        BLOCK_N=launch.row_block_n,
        BLOCK_K=block_k,
        num_warps=launch.row_num_warps,
        **overlap(x.shape[0], x.device),
    )


def _launch_tiles(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, tile: TileLaunch) -> None:
    num_rows, num_inputs = x.shape
    num_outputs = weight.shape[0]
    num_splits = tile.num_splits(num_outputs, num_inputs)
    sums = y if num_splits == 1 else y.new_empty((num_splits, *y.shape), dtype=torch.float32)
    split_len = triton.cdiv(triton.cdiv(num_inputs, num_splits), tile.block_k) * tile.block_k
    _tile_kernel[(triton.cdiv(num_outputs, tile.block_n), num_splits)](
        x,
        weight,
        weight if bias is None else bias,
        sums,
        num_rows,
        num_outputs,
        num_inputs,
        x.stride(0),
        split_len,
        HAS_BIAS=bias is not None and num_splits == 1,
        IS_WHOLE=num_inputs == num_splits * split_len,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        PREFETCHED=tile.prefetched,
        UPCAST=upcasts_dot(x),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **overlap(x.shape[0], x.device),
    )
    if num_splits > 1:
        add_splits(sums, bias, y)


def add_splits(sums: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """Add up the parts of a product that was split by its inputs, [splits, rows, outputs] fp32, in order, into y."""
    _sum_kernel[(triton.cdiv(y.numel(), _SUMMED),)](
        sums,
        sums if bias is None else bias,
        y,
        y.numel(),
        y.shape[1],
        HAS_BIAS=bias is not None,
        NUM_SPLITS=sums.shape[0],
        BLOCK=_SUMMED,
        num_warps=8,
        **overlap(y.shape[0], y.device),
    )


_SUMMED = 2048


@triton.jit
def _row_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    num_outputs,
    num_inputs,
    HAS_BIAS: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next(OVERLAP)
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_y = outputs < num_outputs
    inputs = tl.arange(0, BLOCK_K)
    w_at = weight_ptr + outputs[:, None].to(tl.int64) * num_inputs + inputs[None, :]
    inside_w = inside_y[:, None]
    if not IS_WHOLE:
        inside_w = inside_w & (inputs < num_inputs)[None, :]
    # The first part of the weights is on its way to registers while the kernel that computes x still runs.
    w = tl.load(w_at, mask=inside_w, other=0.0)
    wait_for_previous(OVERLAP)
    x = tl.load(x_ptr + inputs, mask=inputs < num_inputs, other=0.0)
    acc = w.to(tl.float32) * x.to(tl.float32)[None, :]
    for start in range(BLOCK_K, num_inputs, BLOCK_K):
        inside = start + inputs < num_inputs
        inside_w = inside_y[:, None]
        if not IS_WHOLE:
            inside_w = inside_w & inside[None, :]
        w = tl.load(w_at + start, mask=inside_w, other=0.0)
        x = tl.load(x_ptr + start + inputs, mask=inside, other=0.0)
        acc += w.to(tl.float32) * x.to(tl.float32)[None, :]
    y = tl.sum(acc, axis=1)
    if HAS_BIAS:
        y += tl.load(bias_ptr + outputs, mask=inside_y, other=0.0).to(tl.float32)
    tl.store(y_ptr + outputs, y.to(y_ptr.dtype.element_ty), mask=inside_y)


@triton.jit
def _prefetch(at):
    """Bring the cache lines at these addresses as far as the second-level cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [at], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit(do_not_specialize=["num_rows"])
def _tile_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    num_rows,
    num_outputs,
    num_inputs,
    x_stride,
    split_len,
    HAS_BIAS: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PREFETCHED: tl.constexpr,
    UPCAST: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    LINE: tl.constexpr = 64  # two-byte numbers in a cache line
    start_next(OVERLAP)
    rows = tl.arange(0, BLOCK_M)
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inputs = tl.arange(0, BLOCK_K)
    split = tl.program_id(1)
    first, end = split * split_len, tl.minimum((split + 1) * split_len, num_inputs)
    inside_x, inside_w = (rows < num_rows)[:, None], (outputs < num_outputs)[:, None]
    w_rows = weight_ptr + tl.minimum(outputs, num_outputs - 1)[:, None].to(tl.int64) * num_inputs
    if OVERLAP:
        lines = first + tl.arange(0, PREFETCHED // LINE) * LINE
        _prefetch(w_rows + tl.minimum(lines, num_inputs - 1)[None, :])
    wait_for_previous(OVERLAP)
    x_at = x_ptr + rows[:, None] * x_stride + first + inputs[None, :]
    w_at = w_rows + first + inputs[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(first, end, BLOCK_K):
        if IS_WHOLE:
            x = tl.load(x_at, mask=inside_x, other=0.0)
            w = tl.load(w_at, mask=inside_w, other=0.0)
        else:
            inside = (start + inputs < end)[None, :]
            x = tl.load(x_at, mask=inside_x & inside, other=0.0)
            w = tl.load(w_at, mask=inside_w & inside, other=0.0)
        if UPCAST:
            x, w = x.to(tl.float32), w.to(tl.float32)
        acc = tl.dot(x, tl.trans(w), acc)
        x_at += BLOCK_K
        w_at += BLOCK_K
    inside_y = outputs < num_outputs
    if HAS_BIAS:
        acc += tl.load(bias_ptr + outputs, mask=inside_y, other=0.0).to(tl.float32)[None, :]
    y_at = y_ptr + (split * num_rows + rows[:, None]) * num_outputs + outputs[None, :]
    tl.store(y_at, acc.to(y_ptr.dtype.element_ty), mask=inside_x & inside_y[None, :])


@triton.jit
def _sum_kernel(
    sums_ptr,
    bias_ptr,
    y_ptr,
    size,
    num_outputs,
    HAS_BIAS: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next(OVERLAP)
    wait_for_previous(OVERLAP)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    y = tl.load(sums_ptr + at, mask=inside, other=0.0)
    for split in tl.static_range(1, NUM_SPLITS):
        y += tl.load(sums_ptr + split * size + at, mask=inside, other=0.0)
    if HAS_BIAS:
        y += tl.load(bias_ptr + at % num_outputs, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)
