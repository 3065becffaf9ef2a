"""Time products of few rows at an 8B and a 0.6B model's widths, beside the library's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from baton.bench.kernels.measure import Row, time_us
from baton.kernels.few_rows_linear import few_rows_linear
from baton.kernels.launch_table import HOPPER

SHAPES = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096), (4096, 1024), (1024, 3072))

LAUNCH = HOPPER.few_rows
"""On any device: one without an entry of its own uses the library."""


def rows() -> Iterator[Row]:
    """Measure each product with one row, and with each kind of tile; the weights read are more than the cache holds."""
    for num_outputs, num_inputs in SHAPES:
        count = max(2, int(4e8 // (2 * num_outputs * num_inputs)))
        weights = [torch.randn(num_outputs, num_inputs, device="cuda", dtype=torch.bfloat16) for _ in range(count)]
        for num_rows in (1, 8, 32, 64):
            x = torch.randn(num_rows, num_inputs, device="cuda", dtype=torch.bfloat16)
            us = time_us(partial(few_rows_linear, x, launch=LAUNCH), weights)
            peer = time_us(partial(F.linear, x), weights)
            nbytes = 2 * (num_outputs * num_inputs + num_rows * (num_outputs + num_inputs))
            shape = f"{num_rows} x {num_inputs} -> {num_outputs}"
            yield Row("few_rows_linear", shape, us, nbytes / us / 1e3, "GB/s", {"cuBLAS": peer})
