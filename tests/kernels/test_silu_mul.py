import pytest
import torch
import torch.nn.functional as F

from baton.kernels.silu_mul import gelu_tanh_mul, silu_mul


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_tokens", "inner"), [(1, 1), (3, 100), (2, 1025)])
def test_gates_are_their_formulas(dtype, num_tokens, inner, device, assert_close):
    gate_up = 3 * torch.randn(num_tokens, 2 * inner, dtype=dtype, device=device)
    gate, up = gate_up.double().chunk(2, -1)
    assert_close(silu_mul(gate_up), F.silu(gate) * up)
    assert_close(gelu_tanh_mul(gate_up), F.gelu(gate, approximate="tanh") * up)


def test_far_gates_are_finite(device):
    gate_up = torch.tensor([[1e4, -1e4, 2.0, 3.0]], device=device)
    assert silu_mul(gate_up).tolist() == [[2e4, 0.0]]
    assert gelu_tanh_mul(gate_up).tolist() == [[2e4, 0.0]]
