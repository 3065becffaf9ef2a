"""Time the SiLU gate at an 8B model's width, beside torch's silu and product."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from baton.bench.kernels.measure import Row, time_us
from baton.kernels.silu_mul import silu_mul

INNER = 14336


def rows() -> Iterator[Row]:
    """Measure one decode, a full decode batch and a long prompt."""
    for num_tokens in (1, 256, 8192):
        sets = [torch.randn(num_tokens, 2 * INNER, device="cuda", dtype=torch.bfloat16) for _ in range(6)]
        us = time_us(silu_mul, sets)
        peer = time_us(lambda s: F.silu(s[:, :INNER]) * s[:, INNER:], sets)
        nbytes = 3 * num_tokens * INNER * 2
        yield Row("silu_mul", f"{num_tokens} x {INNER}", us, nbytes / us / 1e3, "GB/s", {"torch": peer})
