"""Products by packed weights, against the weights written out."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from baton.kernels.dequantize import dequantize
from baton.kernels.launch_table import WEIGHT_ONLY
from baton.kernels.packed_weight import PackedWeight, pack_weight, part_of
from baton.kernels.weight_only_linear import weight_only_linear

SPLIT = dataclasses.replace(
    WEIGHT_ONLY,
    **{
        name: dataclasses.replace(getattr(WEIGHT_ONLY, name), filled_by=1 << 20) for name in ("narrow", "tall", "large")
    },
)
KINDS = ["int4", "int4-zeros", "int8", "int8-zeros", "fp8"]


def packed(kind: str, num_outputs: int, num_inputs: int, group: int, device: str) -> tuple[PackedWeight, torch.Tensor]:
    """Random values in the layout of the kernels, and the weight that they stand for, fp64."""
    groups = num_inputs // group
    scales = (torch.rand(num_outputs, groups) + 0.5) / num_inputs**0.5
    zeros = None
    if kind == "fp8":
        values = torch.randn(num_outputs, num_inputs).to(torch.float8_e4m3fn)
        plain = values.double()
    elif kind.startswith("int4"):
        values = torch.randint(0, 16, (num_outputs, num_inputs), dtype=torch.uint8)
        zeros = torch.randint(0, 17, (num_outputs, groups), dtype=torch.uint8) if "zeros" in kind else None
        plain = values.double() - (8 if zeros is None else zeros.double().repeat_interleave(group, 1))
        scales = scales / 5
    else:
        values = torch.randint(-128, 128, (num_outputs, num_inputs), dtype=torch.int8)
        zeros = torch.randint(-128, 129, (num_outputs, groups), dtype=torch.int16) if "zeros" in kind else None
        plain = values.double() - (0 if zeros is None else zeros.double().repeat_interleave(group, 1))
        scales = scales / 80
    scales = scales.bfloat16()
    parts = (part.to(device) for part in (values, scales, zeros) if part is not None)
    return pack_weight(*parts), (plain * scales.double().repeat_interleave(group, 1)).to(device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("num_outputs", "num_inputs", "group"), [(40, 256, 128), (33, 192, 32), (16, 512, 512), (70, 448, 64)]
)
def test_a_packed_weight_is_written_out_as_it_was(kind, num_outputs, num_inputs, group, device, assert_close):
    weight, plain = packed(kind, num_outputs, num_inputs, group, device)
    assert weight.shape == (num_outputs, num_inputs)
    assert weight.group == group
    assert_close(dequantize(weight, torch.float32), plain)
    assert_close(dequantize(weight, torch.bfloat16), plain)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize(("num_outputs", "num_inputs", "group"), [(33, 448, 32), (70, 512, 512)])
def test_it_is_the_product(kind, rows, num_outputs, num_inputs, group, device, assert_close):
    dtype, has_bias = (torch.float16, True) if num_outputs == 33 else (torch.bfloat16, False)
    weight, plain = packed(kind, num_outputs, num_inputs, group, device)
    x = torch.randn(rows, num_inputs).to(device, dtype)
    bias = torch.randn(num_outputs).to(device, dtype) if has_bias else None
    expected = x.double() @ plain.t() + (0.0 if bias is None else bias.double())
    for launch in (WEIGHT_ONLY, SPLIT) if rows > 1 else (WEIGHT_ONLY,):
        assert_close(weight_only_linear(x, weight, bias, launch=launch), expected)
    scores = weight_only_linear(x, weight, bias, torch.float32)
    assert scores.dtype == torch.float32
    assert ((scores.double() - expected).norm() / expected.norm()).item() < 5e-5


@pytest.mark.parametrize("rows", [0, 1, 5, 300])
def test_strided_rows_and_none_and_many(rows, device, assert_close):
    weight, plain = packed("int4", 48, 64, 32, device)
    x = torch.randn(2 * rows, 192).to(device, torch.bfloat16)[::2, 64:128]
    y = weight_only_linear(x, weight)
    assert y.shape == (rows, 48)
    if rows:
        assert_close(y, x.double() @ plain.t())


def test_which_shapes_the_kernels_take():
    assert part_of(4096, 128, is_int4=True) == 128
    assert part_of(896, 128, is_int4=True) == 64
    assert part_of(896, 896, is_int4=False) == 128
    assert part_of(96, 96, is_int4=True) is None
    assert part_of(96, 32, is_int4=False) == 32
    assert part_of(4096, 16, is_int4=False) is None
