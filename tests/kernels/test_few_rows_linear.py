"""Products of a few rows, in each of the ways that they are computed."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from baton.kernels.few_rows_linear import few_rows_linear, takes_few_rows
from baton.kernels.launch import FEW_ROWS
from baton.kernels.launch_table import HOPPER
from baton.kernels.linear import linear

LAUNCH = HOPPER.few_rows
assert LAUNCH is not None
WIDE = dataclasses.replace(LAUNCH, wide_from=1)
SPLIT_IN_FOUR = dataclasses.replace(LAUNCH, tall=dataclasses.replace(LAUNCH.tall, filled_by=1 << 20))


def _data(rows, num_outputs, num_inputs, dtype, device):
    x = torch.randn(rows, num_inputs).to(device, dtype)
    return x, (torch.randn(num_outputs, num_inputs) / num_inputs**0.5).to(device, dtype)


def assert_not_rounded(scores, expected):
    """Rounding to fp16 leaves an error of 3e-4, to bf16 2e-3; sums in fp32 stay far under."""
    assert scores.dtype == torch.float32
    assert ((scores.double() - expected).norm() / expected.norm()).item() < 5e-5


@pytest.mark.parametrize("rows", [1, 2, 16, 17, 64])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(71, 40), (64, 512), (130, 2056)])
@pytest.mark.parametrize(("dtype", "has_bias"), [(torch.bfloat16, False), (torch.float16, True)])
@pytest.mark.parametrize("launch", [LAUNCH, WIDE, SPLIT_IN_FOUR], ids=["usual", "wide", "split"])
def test_it_is_the_product(rows, num_outputs, num_inputs, dtype, has_bias, launch, device, assert_close):
    if rows <= 16 and launch is not LAUNCH:
        pytest.skip("the same launch")
    x, weight = _data(rows, num_outputs, num_inputs, dtype, device)
    bias = torch.randn(num_outputs).to(device, dtype) if has_bias else None
    expected = x.double() @ weight.double().t() + (0.0 if bias is None else bias.double())
    y = few_rows_linear(x, weight, bias, launch=launch)
    assert y.dtype == dtype
    assert_close(y, expected)
    scores = few_rows_linear(x, weight, bias, torch.float32, launch)
    assert_not_rounded(scores, expected)


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_strided_rows_are_multiplied_as_they_lie(rows, device, assert_close):
    x = torch.randn(2 * rows, 192).to(device, torch.bfloat16)[::2, 64:128]
    weight = torch.randn(48, 64).to(device, torch.bfloat16)
    assert_close(few_rows_linear(x, weight, launch=LAUNCH), x.double() @ weight.double().t())


def test_more_rows_four_byte_numbers_and_a_cpu_are_the_librarys():
    weight = torch.zeros(8, 8, dtype=torch.bfloat16)
    assert not takes_few_rows(torch.zeros(1, 8, dtype=torch.bfloat16), weight)
    if torch.cuda.is_available():
        weight = weight.cuda()
        assert not takes_few_rows(torch.zeros(FEW_ROWS + 1, 8, dtype=torch.bfloat16, device="cuda"), weight)
        assert not takes_few_rows(torch.zeros(1, 8, device="cuda"), weight.float())


@pytest.mark.parametrize("rows", [1, 3, 64, 65, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [False, True])
def test_logits_on_a_gpu_are_not_rounded_to_the_models_type(rows, dtype, has_bias, device, assert_close):
    x, weight = _data(rows, 96, 64, dtype, device)
    bias = torch.randn(96).to(device, dtype) if has_bias else None
    scores = linear(x, weight, bias, torch.float32)
    expected = x.double() @ weight.double().t() + (0.0 if bias is None else bias.double())
    assert scores.dtype == torch.float32
    assert_close(scores, expected, dtype)
    if device == "cuda" and not has_bias:
        assert_not_rounded(scores, expected)


@pytest.mark.parametrize(
    ("num_outputs", "num_inputs", "splits"),
    [(6144, 4096, 1), (4096, 4096, 2), (4096, 14336, 2), (1024, 2048, 4), (1024, 3072, 4), (4096, 1024, 1)],
)
def test_a_long_product_of_few_programs_is_split(num_outputs, num_inputs, splits):
    assert LAUNCH is not None
    assert LAUNCH.tall.num_splits(num_outputs, num_inputs) == splits


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter overlaps nothing")
@pytest.mark.parametrize("rows", [1, 8, 48])
def test_overlapping_kernels_see_what_the_ones_before_them_wrote(rows):
    """A chain in which each product needs all of the one before it, captured, against the library's."""
    chain = [torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16) / 45 for _ in range(24)]
    x = torch.randn(rows, 2048, device="cuda", dtype=torch.bfloat16)

    def run(start):
        for weight in chain:
            start = few_rows_linear(start, weight)
        return start

    eager = run(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(x)
    for _ in range(50):
        captured.zero_()
        graph.replay()
        assert torch.equal(captured, eager)
    expected = x.double()
    for weight in chain:
        expected = expected @ weight.double().t()
    assert ((eager.double() - expected).norm() / expected.norm()).item() < 0.05
