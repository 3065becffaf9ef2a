"""Time rotation with the cache write at an 8B model's heads (and Qwen3's head norms), and the write alone, beside plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from baton.bench.kernels.measure import Row, time_us
from baton.kernels.kv_write import kv_write, kv_write_reference
from baton.kernels.rotary import rotary_kv_write, rotary_kv_write_reference

WIDTHS, HEAD_DIM, BLOCK_SIZE = [32, 8, 8], 128, 16
COUNTS = (1, 256, 8192)


def rows() -> Iterator[Row]:
    """Measure one decode, a full decode batch and a long prompt."""
    for num_tokens in COUNTS:
        for has_norm in (False, True):
            yield _rotary_row(num_tokens, has_norm)
    for num_tokens in COUNTS:
        yield _write_row(num_tokens)


def _cache_and_slots(num_tokens: int) -> tuple[Tensor, Tensor]:
    shape = (1024, 4, 2, BLOCK_SIZE, WIDTHS[1], HEAD_DIM)
    kv_layer = torch.zeros(shape, device="cuda", dtype=torch.bfloat16)[:, 1]
    return kv_layer, torch.randperm(1023 * BLOCK_SIZE, device="cuda")[:num_tokens] + BLOCK_SIZE


def _rotary_row(num_tokens: int, has_norm: bool) -> Row:
    cos_sin = torch.randn(8192, 2, HEAD_DIM // 2, device="cuda")
    norm = torch.randn(HEAD_DIM, device="cuda", dtype=torch.bfloat16) if has_norm else None
    shape = (num_tokens, sum(WIDTHS), HEAD_DIM)
    sets = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(6)]
    positions = torch.randint(0, 8192, (num_tokens,), device="cuda")
    kv_layer, slots = _cache_and_slots(num_tokens)

    def timed(call: Callable[..., Tensor]) -> float:
        return time_us(
            lambda s: call(
                *torch.split(s, WIDTHS, dim=1), cos_sin, positions, kv_layer, slots, q_norm=norm, k_norm=norm, eps=1e-6
            ),
            sets,
        )

    us, peer = timed(rotary_kv_write), timed(rotary_kv_write_reference)
    nbytes = 2 * num_tokens * sum(WIDTHS) * HEAD_DIM * 2
    name = "head norms, rotary_kv_write" if has_norm else "rotary_kv_write"
    return Row(name, f"{num_tokens} x 32+8+8 x 128", us, nbytes / us / 1e3, "GB/s", {"torch": peer})


def _write_row(num_tokens: int) -> Row:
    num_kv_heads = WIDTHS[1]
    shape = (2, num_tokens, num_kv_heads, HEAD_DIM)
    sets = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(16)]
    to = _cache_and_slots(num_tokens)
    us = time_us(lambda kv: kv_write(kv[0], kv[1], *to), sets)
    peer = time_us(lambda kv: kv_write_reference(kv[0], kv[1], *to), sets)
    nbytes = 4 * num_tokens * num_kv_heads * HEAD_DIM * 2
    return Row("kv_write", f"{num_tokens} x 8+8 x 128", us, nbytes / us / 1e3, "GB/s", {"torch": peer})
