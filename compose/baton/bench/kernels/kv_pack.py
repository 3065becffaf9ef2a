"""Time the gather and scatter of an 8B model's blocks (2 MiB each), beside torch's index_select and index_copy_."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from baton.bench.kernels.measure import Row, time_us
from baton.kernels.kv_pack import kv_pack, kv_pack_reference, kv_unpack, kv_unpack_reference

POOL = (1200, 32, 2, 16, 8, 128)


def rows() -> Iterator[Row]:
    """Measure a short and a long prompt's blocks, there and back."""
    kv = torch.randn(POOL, device="cuda", dtype=torch.bfloat16)
    for num_blocks in (16, 512):
        yield from _pair(kv, num_blocks)


def _pair(kv: torch.Tensor, num_blocks: int) -> Iterator[Row]:
    sets = [torch.randperm(POOL[0], device="cuda")[:num_blocks] for _ in range(4)]
    out = torch.empty(num_blocks, *POOL[1:], device="cuda", dtype=kv.dtype)
    shape, nbytes = f"{num_blocks} x 2 MiB", 2 * out.nbytes
    us = time_us(lambda ids: kv_pack(kv, ids, out=out), sets)
    peer = time_us(lambda ids: kv_pack_reference(kv, ids, out=out), sets)
    yield Row("kv_pack", shape, us, nbytes / us / 1e3, "GB/s", {"index_select": peer})
    us = time_us(lambda ids: kv_unpack(out, kv, ids), sets)
    peer = time_us(lambda ids: kv_unpack_reference(out, kv, ids), sets)
    yield Row("kv_unpack", shape, us, nbytes / us / 1e3, "GB/s", {"index_copy_": peer})
