"""Time RMSNorm with a residual at an 8B model's width, beside torch's add and rms_norm."""

import torch
import torch.nn.functional as F
from measure import Row, measure_ceilings, report, time_us

from baton.kernels.rms_norm import add_rms_norm

HIDDEN = 4096


def row(num_tokens: int) -> Row:
    """Measure one number of tokens."""
    weight = torch.randn(HIDDEN, device="cuda", dtype=torch.bfloat16)
    sets = [torch.randn(2, num_tokens, HIDDEN, device="cuda", dtype=torch.bfloat16) for _ in range(8)]
    us = time_us(lambda s: add_rms_norm(s[0], s[1], weight, 1e-5), sets)
    peer = time_us(lambda s: F.rms_norm(s[1].add_(s[0]), (HIDDEN,), weight, 1e-5), sets)
    nbytes = 4 * num_tokens * HIDDEN * 2
    return Row("add_rms_norm", f"{num_tokens} x {HIDDEN}", us, nbytes / us / 1e3, "GB/s", "torch", peer)


def rows() -> list[Row]:
    """Measure one decode, a full decode batch and a long prompt."""
    return [row(num_tokens) for num_tokens in (1, 256, 8192)]


if __name__ == "__main__":
    report(rows(), measure_ceilings())
