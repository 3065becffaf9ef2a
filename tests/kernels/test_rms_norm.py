import pytest
import torch

from baton.kernels.rms_norm import add_rms_norm, rms_norm

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * (weight.double() + offset)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [1, 20, 384, 1000])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm_is_its_formula(dtype, hidden, offset, device, assert_close):
    x = torch.randn(5, 2 * hidden, dtype=dtype, device=device)[:, hidden:]  # rows strided
    weight = torch.randn(hidden, dtype=dtype, device=device)
    assert_close(rms_norm(x, weight, 1e-5, offset), _norm(x, weight, 1e-5, offset))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_takes_heads(dtype, device, assert_close):
    x = torch.randn(3, 4, 24, dtype=dtype, device=device)
    weight = torch.randn(24, dtype=dtype, device=device)
    assert_close(rms_norm(x, weight, 1e-6), _norm(x, weight, 1e-6, 0.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm_adds_and_norms_the_rounded_sum(dtype, device, assert_close):
    x = torch.randn(7, 100, dtype=dtype, device=device)
    residual = torch.randn(7, 100, dtype=dtype, device=device)
    weight = torch.randn(100, dtype=dtype, device=device)
    total = x + residual
    y, new_residual = add_rms_norm(x, residual, weight, 1e-5)
    # The interpreter truncates where a device rounds to bf16, so there the sum is not bit for bit.
    assert_close(new_residual, total)
    assert new_residual.data_ptr() == residual.data_ptr()
    assert_close(y, _norm(new_residual, weight, 1e-5, 0.0))


def test_no_tokens_give_no_tokens(device):
    assert rms_norm(torch.zeros(0, 8, device=device), torch.ones(8, device=device), 1e-5).shape == (0, 8)
