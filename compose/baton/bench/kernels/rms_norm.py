"""Time RMSNorm with a residual at an 8B model's width, beside torch's add and rms_norm."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from baton.bench.kernels.measure import Row, time_us
from baton.kernels.rms_norm import add_rms_norm

HIDDEN = 4096


def rows() -> Iterator[Row]:
    """Measure one decode, a full decode batch and a long prompt."""
    weight = torch.randn(HIDDEN, device="cuda", dtype=torch.bfloat16)
    for num_tokens in (1, 256, 8192):
        sets = [torch.randn(2, num_tokens, HIDDEN, device="cuda", dtype=torch.bfloat16) for _ in range(8)]
        us = time_us(lambda s: add_rms_norm(s[0], s[1], weight, 1e-5), sets)
        peer = time_us(lambda s: F.rms_norm(s[1].add_(s[0]), (HIDDEN,), weight, 1e-5), sets)
        nbytes = 4 * num_tokens * HIDDEN * 2
        yield Row("add_rms_norm", f"{num_tokens} x {HIDDEN}", us, nbytes / us / 1e3, "GB/s", {"torch": peer})
