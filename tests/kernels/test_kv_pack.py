import pytest
import torch

from baton.kernels.kv_pack import kv_pack, kv_unpack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("shape", [(9, 2, 2, 16, 2, 8), (5, 1, 2, 4, 3, 5), (4, 1, 1, 1, 1, 3)])
def test_unpack_restores_what_pack_took(dtype, shape, device):
    kv = (100 * torch.rand(shape, device=device)).to(dtype)
    ids = torch.tensor([3, 1, 2], device=device)
    packed = kv_pack(kv, ids)
    assert packed.is_contiguous()
    assert torch.equal(packed, kv[ids])
    out = torch.empty_like(packed)
    assert kv_pack(kv, ids, out=out).data_ptr() == out.data_ptr()
    assert torch.equal(out, packed)
    other = torch.zeros_like(kv)
    to = torch.tensor([0, 3, 1], device=device)
    kv_unpack(packed, other, to)
    expected = torch.zeros_like(kv)
    expected[to] = packed
    assert torch.equal(other, expected)


def test_no_blocks_are_no_work(device):
    kv = torch.zeros(3, 4, device=device)
    none = torch.zeros(0, dtype=torch.int64, device=device)
    assert kv_pack(kv, none).shape == (0, 4)
    kv_unpack(kv[:0], kv, none)
