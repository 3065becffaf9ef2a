from typing import Any

import pytest
import torch

from baton.kernels.rotary import rotary_kv_write

BLOCK_SIZE = 16


def _turn(x: torch.Tensor, angles: torch.Tensor, interleaved: bool = False) -> torch.Tensor:
    half = angles.shape[1]
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    if interleaved:
        x = x.clone()
        a, b = x[..., : 2 * half : 2].clone(), x[..., 1 : 2 * half : 2].clone()
        x[..., : 2 * half : 2], x[..., 1 : 2 * half : 2] = a * cos - b * sin, b * cos + a * sin
        return x
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * (weight.double() + offset)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("has_norm", "interleaved"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "rot_dim"), [(6, 2, 64, 64), (4, 4, 20, 8), (3, 1, 80, 32), (5, 5, 2, 2)]
)
def test_heads_turn_and_land(
    dtype, has_norm, interleaved, num_heads, num_kv_heads, head_dim, rot_dim, device, assert_close
):
    offset = 1.0 if interleaved else 0.0
    num_tokens = 5
    widths = (num_heads, num_kv_heads, num_kv_heads)
    qkv = torch.randn(num_tokens, sum(widths), head_dim, device=device).to(dtype)
    q, k, v = qkv.clone().split(widths, dim=1)
    kv = torch.zeros(6, 3, 2, BLOCK_SIZE, num_kv_heads, head_dim, dtype=dtype, device=device)
    positions = torch.randint(0, 100, (num_tokens,), device=device)
    slots = (torch.randperm(5 * BLOCK_SIZE)[:num_tokens] + BLOCK_SIZE).to(device)
    angles = torch.arange(100, device=device)[:, None] * 1000.0 ** (
        -torch.arange(rot_dim // 2, device=device) / rot_dim
    )
    cos_sin = torch.stack([angles.cos(), angles.sin()], dim=1)
    norms = torch.randn(2, head_dim, device=device).to(dtype)
    given: dict[str, Any] = (
        {"q_norm": norms[0], "k_norm": norms[1], "eps": 1e-6, "norm_offset": offset} if has_norm else {}
    )

    turned = rotary_kv_write(q, k, v, cos_sin, positions, kv[:, 1], slots, **given, interleaved=interleaved)

    want_q, want_k, want_v = qkv.double().split(widths, dim=1)
    if has_norm:
        want_q, want_k = _norm(want_q, norms[0], 1e-6, offset), _norm(want_k, norms[1], 1e-6, offset)
    at = angles[positions].double()
    assert_close(turned, _turn(want_q, at, interleaved))
    blocks, offsets = slots // BLOCK_SIZE, slots % BLOCK_SIZE
    assert_close(kv[blocks, 1, 0, offsets], _turn(want_k, at, interleaved))
    assert torch.equal(kv[blocks, 1, 1, offsets].double(), want_v)
    kv[blocks, 1, :, offsets] = 0
    assert not kv.any()  # nothing else was written


def test_separate_projections_give_what_a_fused_one_gives(device):
    q, k, v = (torch.randn(4, n, 16, device=device) for n in (4, 2, 2))
    cos_sin = torch.randn(50, 2, 8, device=device)
    positions, slots = torch.arange(4, device=device), torch.arange(16, 20, device=device)
    results = []
    fused_q, fused_k, fused_v = torch.cat([q, k, v], dim=1).split((4, 2, 2), dim=1)
    for own_q, own_k, own_v in ((q, k, v), (fused_q, fused_k, fused_v)):
        kv = torch.zeros(2, 1, 2, 16, 2, 16, device=device)
        results.append((rotary_kv_write(own_q, own_k, own_v, cos_sin, positions, kv[:, 0], slots), kv))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
