"""Time rotation with the cache write at an 8B model's heads (and Qwen3's head norms), beside the plain-torch reference."""

import torch
from measure import Row, measure_ceilings, report, time_us

from baton.kernels.rotary import rotary_kv_write, rotary_kv_write_reference

WIDTHS, HEAD_DIM, BLOCK_SIZE = (32, 8, 8), 128, 16


def row(num_tokens: int, has_norm: bool) -> Row:
    """Measure one number of tokens."""
    cos_sin = torch.randn(8192, 2, HEAD_DIM // 2, device="cuda")
    norm = torch.randn(HEAD_DIM, device="cuda", dtype=torch.bfloat16) if has_norm else None
    kv_layer = torch.zeros(1024, 4, 2, BLOCK_SIZE, WIDTHS[1], HEAD_DIM, device="cuda", dtype=torch.bfloat16)[
        :, 1
    ]
    shape = (num_tokens, sum(WIDTHS), HEAD_DIM)
    sets = [torch.randn(shape, device="cuda", dtype=torch.bfloat16).split(WIDTHS, dim=1) for _ in range(6)]
    positions = torch.randint(0, 8192, (num_tokens,), device="cuda")
    slots = torch.randperm(1023 * BLOCK_SIZE, device="cuda")[:num_tokens] + BLOCK_SIZE
    rest = (cos_sin, positions, kv_layer, slots)
    given = {"q_norm": norm, "k_norm": norm, "eps": 1e-6}
    us = time_us(lambda s: rotary_kv_write(*s, *rest, **given), sets)
    peer = time_us(lambda s: rotary_kv_write_reference(*s, *rest, **given), sets)
    nbytes = 2 * num_tokens * sum(WIDTHS) * HEAD_DIM * 2
    name = "head norms, rotary_kv_write" if has_norm else "rotary_kv_write"
    return Row(name, f"{num_tokens} x 32+8+8 x 128", us, nbytes / us / 1e3, "GB/s", "torch", peer)


def rows() -> list[Row]:
    """Measure one decode, a full decode batch and a long prompt."""
    return [row(num_tokens, has_norm) for num_tokens in (1, 256, 8192) for has_norm in (False, True)]


if __name__ == "__main__":
    report(rows(), measure_ceilings())
