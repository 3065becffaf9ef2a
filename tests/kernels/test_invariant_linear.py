"""A row's product is its own: the same bits whatever rows stand beside it."""

from __future__ import annotations

import pytest
import torch

from baton.kernels.invariant_linear import _TILES, agreeing_tiles, invariant_linear

ROWS = (1, 17, 63, 64, 65, 150)
LOOKED_AT = (0, 16, 62, 128, 149)


def _data(num_outputs, num_inputs, dtype, device):
    x = torch.randn(max(ROWS), num_inputs).to(device, dtype)
    return x, (torch.randn(num_outputs, num_inputs) / num_inputs**0.5).to(device, dtype)


@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(71, 45), (64, 256), (200, 100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_bias", [False, True])
def test_it_is_the_product(rows, num_outputs, num_inputs, dtype, has_bias, device, assert_close):
    x, weight = _data(num_outputs, num_inputs, dtype, device)
    bias = torch.randn(num_outputs).to(device, dtype) if has_bias else None
    y = invariant_linear(x[:rows], weight, bias)
    assert y.dtype == dtype
    expected = x[:rows].double() @ weight.double().t() + (0.0 if bias is None else bias.double())
    assert_close(y, expected)


@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(96, 64), (211, 100), (320, 512)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("same_bits_anywhere")
def test_no_row_depends_on_the_others(num_outputs, num_inputs, dtype, device):
    x, weight = _data(num_outputs, num_inputs, dtype, device)
    alone = torch.cat([invariant_linear(x[i : i + 1], weight) for i in LOOKED_AT])
    for rows in ROWS:
        y = invariant_linear(x[:rows], weight)
        kept = [row for row in LOOKED_AT if row < rows]
        assert torch.equal(y[kept], alone[: len(kept)])
        if rows < len(x):
            assert torch.equal(invariant_linear(x[-rows:], weight)[-1:], alone[-1:])


def test_strided_rows_are_multiplied_as_they_lie(device, assert_close):
    x, weight = torch.randn(9, 64, device=device)[::2, :32], torch.randn(16, 32, device=device)
    assert_close(invariant_linear(x, weight), x.double() @ weight.double().t())


def test_no_rows_give_no_rows(device):
    assert invariant_linear(torch.zeros(0, 8, device=device), torch.zeros(5, 8, device=device)).shape == (0, 5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter has no matrix unit")
def test_every_tile_gives_the_same_bits_on_hopper():
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("another device may leave tiles out")
    for dtype in (torch.bfloat16, torch.float16):
        assert agreeing_tiles(torch.device("cuda"), dtype) == _TILES


@pytest.mark.skipif(not torch.cuda.is_available(), reason="too much for the interpreter")
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(6144, 4096), (4096, 14336), (20_000, 1024)])
def test_no_row_of_a_large_product_depends_on_the_others(num_outputs, num_inputs):
    x = torch.randn(4096, num_inputs, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(num_outputs, num_inputs, device="cuda", dtype=torch.bfloat16)
    whole = invariant_linear(x, weight)
    for rows in (1, 5, 32, 64, 200, 256, 1000, 2048):
        assert torch.equal(invariant_linear(x[-rows:], weight), whole[-rows:])
