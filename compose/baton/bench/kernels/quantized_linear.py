"""Time products by quantized weights at an 8B model's widths, beside cuBLAS in bf16, and hold each to its reference.

A weight of each kind: `int4` (groups of 128), `int4 zeros`, `int8` and `fp8` (a scale an output), `fp8 blocks` (of 128 inputs). Each
number of rows is multiplied as an engine does it. `baton bench kernels --sweep` times other launches of few rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from baton.bench.kernels.measure import Row, time_us
from baton.kernels.fp8_linear import fp8_linear, multiplies_fp8, takes_fp8
from baton.kernels.launch_table import WEIGHT_ONLY, TileLaunch, WeightOnlyLaunch
from baton.kernels.packed_weight import PackedWeight, dequantize_reference, pack_weight
from baton.kernels.weight_only_linear import weight_only_linear

SHAPES = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
"""Outputs and inputs: queries, keys and values; attention's output; gate and up; down."""
ROWS = (1, 8, 32, 128, 2048, 8192)
KINDS = ("int4", "int4 zeros", "int8", "fp8", "fp8 blocks")
SWEPT = (1, 8, 32, 128)
LARGEST_ERROR = {"weight": 1e-2, "rows": 6e-2}
"""Of a product whose weight alone is rounded, or its rows too: the norm of the difference to that of the exact one."""


def rows() -> Iterator[Row]:
    """Measure each kind at each shape; the weights read are more than the cache holds."""
    for kind in KINDS:
        if kind.startswith("fp8") and not multiplies_fp8(torch.device("cuda")):
            continue
        for num_outputs, num_inputs in SHAPES:
            yield from _of_shape(kind, num_outputs, num_inputs)


def _of_shape(kind: str, num_outputs: int, num_inputs: int) -> Iterator[Row]:
    count = max(2, int(4e8 // (num_outputs * num_inputs)))
    weights = [make_weight(kind, num_outputs, num_inputs) for _ in range(count)]
    dense = [torch.randn(num_outputs, num_inputs, device="cuda", dtype=torch.bfloat16) for _ in range(count)]
    exact = dequantize_reference(weights[0], torch.bfloat16)
    for num_rows in ROWS:
        x = torch.randn(num_rows, num_inputs, device="cuda", dtype=torch.bfloat16)
        call = partial(multiply, x)
        error = _error(call(weights[0]), x, exact)
        limit = LARGEST_ERROR["rows" if takes_fp8(x, weights[0]) else "weight"]
        if not error < limit:
            raise ArithmeticError(
                f"{kind}, {num_rows} x {num_inputs} -> {num_outputs}: error {error:.2e} is not below {limit}"
            )
        # A cold start of more weights than the cache holds, or, of many rows, few calls.
        sets = slice(None) if num_rows <= 128 else slice(0, 2)
        us = time_us(call, weights[sets], min_calls=8 if num_rows <= 128 else 2)
        peers = {"cuBLAS bf16": time_us(partial(F.linear, x), dense[sets], min_calls=8 if num_rows <= 128 else 2)}
        shape = f"{kind}, {num_rows} x {num_inputs} -> {num_outputs}, error {error:.1e}"
        if num_rows <= 128:
            nbytes = weights[0].nbytes + 2 * num_rows * (num_outputs + num_inputs)
            yield Row("quantized_linear", shape, us, nbytes / us / 1e3, "GB/s", peers)
        else:
            tflops = 2 * num_rows * num_outputs * num_inputs / us / 1e6
            yield Row("quantized_linear", shape, us, tflops, "TFLOP/s", peers)


def multiply(x: Tensor, weight: PackedWeight) -> Tensor:
    """Multiply as an engine does."""
    if weight.data.dtype == torch.float8_e4m3fn and takes_fp8(x, weight):
        return fp8_linear(x, weight)
    return weight_only_linear(x, weight)


def make_weight(kind: str, num_outputs: int, num_inputs: int) -> PackedWeight:
    """Make a random weight on the GPU."""
    groups = num_inputs // 128 if kind in ("int4", "int4 zeros", "fp8 blocks") else 1
    dtype = torch.float32 if kind.startswith("fp8") else torch.bfloat16
    scales = (torch.rand(num_outputs, groups, device="cuda") * 0.02 + 0.01).to(dtype)
    zeros = None
    if kind.startswith("int4"):
        values = torch.randint(0, 16, (num_outputs, num_inputs), device="cuda", dtype=torch.uint8)
        if kind == "int4 zeros":
            zeros = torch.randint(0, 16, scales.shape, device="cuda", dtype=torch.uint8)
    elif kind == "int8":
        values = torch.randint(-127, 128, (num_outputs, num_inputs), device="cuda", dtype=torch.int8)
    else:
        values = torch.randn(num_outputs, num_inputs, device="cuda", dtype=torch.bfloat16).to(torch.float8_e4m3fn)
    return pack_weight(values, scales, zeros)


def sweep() -> Iterator[tuple[str, float, str, object]]:
    """Time other launches of the kernels of few rows: shape, GB/s, the unit, the launch."""
    for kind in ("int4", "int8", "fp8"):
        if kind == "fp8" and not multiplies_fp8(torch.device("cuda")):
            continue
        for num_outputs, num_inputs in SHAPES:
            count = max(2, int(2e8 // (num_outputs * num_inputs)))
            weights = [make_weight(kind, num_outputs, num_inputs) for _ in range(count)]
            for num_rows in SWEPT:
                x = torch.randn(num_rows, num_inputs, device="cuda", dtype=torch.bfloat16)
                for launch in launches_tried(num_rows):
                    rate = _rate(x, weights, launch)
                    if rate:
                        yield f"{kind}, {num_rows} x {num_inputs} -> {num_outputs}", rate, "GB/s", launch


def _rate(x: Tensor, weights: list[PackedWeight], launch: WeightOnlyLaunch) -> float:
    try:
        us = time_us(partial(_launched, x, launch), weights, replays=4)
    except Exception:  # a tile that does not fit the device
        return 0.0
    return weights[0].nbytes / us / 1e3


def _launched(x: Tensor, launch: WeightOnlyLaunch, weight: PackedWeight) -> Tensor:
    return weight_only_linear(x, weight, launch=launch)


def launches_tried(num_rows: int) -> Iterator[WeightOnlyLaunch]:
    """Yield launches that may be a device's own."""
    if num_rows == 1:
        for block_n in (2, 4, 8):
            for row_bytes in (512, 1024, 2048):
                for warps in (2, 4, 8):
                    yield replace(
                        WEIGHT_ONLY,
                        row_block_n=block_n,
                        int4_row_bytes=row_bytes,
                        int8_row_bytes=row_bytes,
                        row_num_warps=warps,
                    )
        return
    block_m = 16 if num_rows <= 16 else 32 if num_rows <= 32 else 64
    for block_n in (16, 32, 64, 128):
        for warps in (2, 4):
            for stages in (3, 5):
                for filled_by in (132, 264, 528):
                    tile = TileLaunch(block_m, block_n, 128, warps, stages, filled_by=filled_by)
                    yield replace(WEIGHT_ONLY, narrow=tile, tall=tile, large=tile, int8_narrow=tile)


def _error(y: Tensor, x: Tensor, weight: Tensor) -> float:
    expected = F.linear(x, weight).float()
    return float((y.float() - expected).norm() / expected.norm())
