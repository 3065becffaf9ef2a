"""A packed weight multiplies as the weight itself does."""

from __future__ import annotations

import pytest
import torch

from baton.kernels.linear import linear, linear_packed, pack_weight, packs, padded_rows


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 64, 129])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_packed_weight_gives_the_same_product(rows: int, has_bias: bool) -> None:
    torch.manual_seed(rows)
    x, weight, bias = torch.randn(rows, 45), torch.randn(71, 45), torch.randn(71)
    if not packs(weight):
        pytest.skip("this torch has no oneDNN")
    expected = x.double() @ weight.double().t() + (bias.double() if has_bias else 0.0)
    found = linear_packed(x, pack_weight(weight), bias if has_bias else None)
    assert torch.allclose(found.double(), expected, atol=1e-5)
    assert torch.allclose(linear(x, weight, bias if has_bias else None), found, atol=1e-5)


def test_strided_rows_are_multiplied_as_they_lie() -> None:
    x, weight = torch.randn(9, 64)[::2, :32], torch.randn(16, 32)
    assert torch.allclose(linear_packed(x, pack_weight(weight)), x @ weight.t(), atol=1e-5)


def test_few_numbers_of_rows_are_ever_multiplied_as_kernels_for_each_stay_in_memory() -> None:
    padded = [padded_rows(num) for num in range(1, 2049)]
    assert padded[:16] == list(range(1, 17))
    assert all(num <= rows < 1.125 * num for num, rows in enumerate(padded, 1))
    assert len(set(padded)) == 16 + 7 * 8


def test_only_what_the_processor_multiplies_is_packed() -> None:
    assert not packs(torch.zeros(4, 4, dtype=torch.float16))
    assert not packs(torch.zeros(4, 4, device="meta"))


@pytest.mark.parametrize("rows", [1, 7, 129])
def test_a_packed_bf16_weight_gives_the_same_product(rows: int) -> None:
    torch.manual_seed(rows)
    x, weight, bias = (torch.randn(*shape).bfloat16() for shape in ((rows, 45), (71, 45), (71,)))
    if not packs(weight):
        pytest.skip("this processor has no instructions for bf16")
    expected = x.float() @ weight.float().t() + bias.float()
    found = linear_packed(x, pack_weight(weight), bias, torch.float32)
    assert torch.allclose(found, expected, rtol=1e-2, atol=1e-2)
