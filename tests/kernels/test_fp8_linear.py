"""Rows scaled to eight bits, and products of them."""

from __future__ import annotations

import pytest
import torch

from baton.kernels.fp8_linear import fp8_linear, fp8_linear_reference, takes_fp8
from baton.kernels.packed_weight import pack_weight
from baton.kernels.quantize_rows import LARGEST, quantize_rows, quantize_rows_reference


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize(("rows", "length", "group"), [(3, 200, None), (5, 384, 128), (1, 64, 32)])
def test_rows_are_scaled_to_their_largest(dtype, rows, length, group, device):
    x = torch.randn(2 * rows, length + 8).to(device, torch.bfloat16)[::2, :length]
    q, scales = quantize_rows(x, dtype, group)
    expected, expected_scales = quantize_rows_reference(x.contiguous(), dtype, group)
    torch.testing.assert_close(scales, expected_scales)
    assert (q.float() == expected.float()).float().mean().item() > 0.95  # a tie may fall to either side
    back = q.float().view(rows, -1, group or length) * scales[:, :, None]
    step = 2**-4 if dtype == torch.float8_e4m3fn else 0.6 / 127
    error = (back.view(rows, -1) - x.float()).abs()
    assert bool((error <= step * x.float().abs().amax(1, keepdim=True)).all())
    assert q.float().abs().max().item() == LARGEST[dtype]


def test_a_row_of_zeros_stays_zeros(device):
    q, _ = quantize_rows(torch.zeros(2, 32, device=device), torch.int8)
    assert not q.any()


@pytest.mark.parametrize("group", [256, 128])
@pytest.mark.parametrize(("rows", "has_bias", "is_static"), [(70, True, False), (130, False, False), (70, False, True)])
def test_a_product_of_eight_bit_floats(group, rows, has_bias, is_static, device, assert_close):
    if is_static and group == 128:
        pytest.skip("blocks have no scale of activations")
    x = torch.randn(rows, 256).to(device, torch.bfloat16)
    weight = pack_weight(
        torch.randn(48, 256).to(device, torch.float8_e4m3fn), (torch.rand(48, 256 // group, device=device) + 0.5) / 16
    )
    bias = torch.randn(48).to(device, torch.bfloat16) if has_bias else None
    x_scale = torch.tensor(0.01, device=device) if is_static else None
    y = fp8_linear(x, weight, bias, x_scale=x_scale)
    expected = fp8_linear_reference(x, weight, bias, torch.float32, x_scale)
    assert y.dtype == torch.bfloat16
    assert_close(y, expected)


def test_a_cpu_and_few_rows_are_multiplied_by_the_weight_unpacked():
    weight = pack_weight(torch.randn(48, 256).to(torch.float8_e4m3fn), torch.ones(48, 1))
    assert not takes_fp8(torch.zeros(100, 256, dtype=torch.bfloat16), weight)
