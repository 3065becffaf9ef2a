"""Time the gather and scatter of an 8B model's blocks (2 MiB each), beside torch's index_select and index_copy_."""

import torch
from measure import Row, measure_ceilings, report, time_us

from baton.kernels.kv_pack import kv_pack, kv_pack_reference, kv_unpack, kv_unpack_reference

POOL = (1200, 32, 2, 16, 8, 128)


def pair(num_blocks: int) -> list[Row]:
    """Measure one number of blocks, there and back."""
    kv = torch.randn(POOL, device="cuda", dtype=torch.bfloat16)
    sets = [torch.randperm(POOL[0], device="cuda")[:num_blocks] for _ in range(4)]
    out = torch.empty(num_blocks, *POOL[1:], device="cuda", dtype=kv.dtype)
    shape, nbytes = f"{num_blocks} x 2 MiB", 2 * out.nbytes
    us = time_us(lambda ids: kv_pack(kv, ids, out=out), sets)
    peer = time_us(lambda ids: kv_pack_reference(kv, ids, out=out), sets)
    packing = Row("kv_pack", shape, us, nbytes / us / 1e3, "GB/s", "index_select", peer)
    us = time_us(lambda ids: kv_unpack(out, kv, ids), sets)
    peer = time_us(lambda ids: kv_unpack_reference(out, kv, ids), sets)
    return [packing, Row("kv_unpack", shape, us, nbytes / us / 1e3, "GB/s", "index_copy_", peer)]


def rows() -> list[Row]:
    """Measure a short and a long prompt's blocks."""
    return pair(16) + pair(512)


if __name__ == "__main__":
    report(rows(), measure_ceilings())
