import pytest
import torch

from baton.kernels.kv_write import kv_write


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_kv_heads", "head_dim", "block_size"), [(2, 64, 16), (3, 20, 16), (1, 8, 4)])
def test_each_token_lands_in_its_slot_of_its_layer(dtype, num_kv_heads, head_dim, block_size, device):
    num_tokens = 7
    kv = torch.randn(6, 3, 2, block_size, num_kv_heads, head_dim, device=device).to(dtype)
    before = kv.clone()
    qkv = torch.randn(num_tokens, 4 * num_kv_heads, head_dim, device=device).to(dtype)
    k, v = qkv[:, 2 * num_kv_heads : 3 * num_kv_heads], qkv[:, 3 * num_kv_heads :]
    slots = (torch.randperm(5 * block_size)[:num_tokens] + block_size).to(device)
    kv_write(k, v, kv[:, 1], slots)
    expected = before.clone()
    expected[slots // block_size, 1, 0, slots % block_size] = k
    expected[slots // block_size, 1, 1, slots % block_size] = v
    assert torch.equal(kv, expected)
