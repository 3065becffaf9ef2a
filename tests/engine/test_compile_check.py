"""Kernels are compiled before they are needed: here, and without a device for those that a GPU would have."""

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from baton.engine.compile_check import KernelShapes, compile_kernels
from baton.errors import KernelError
from baton.kernels import launch, silu_mul
from baton.kernels.launch import INTERPRET, tl, triton
from baton.models.spec import LatentSpec

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HAS_TRITON = importlib.util.find_spec("triton") is not None

LLAMA = KernelShapes(
    dtype=torch.float32,
    block_size=16,
    max_model_len=640,
    max_num_seqs=5,
    vocab_size=300,
    hidden_size=48,
    intermediate_size=80,
    num_heads=4,
    num_kv_heads=2,
    head_dim=24,
    rotations=((24, False),),
    writes_unrotated=False,
    has_rms_norm=True,
    has_head_norms=False,
    gate="silu",
    windows=(None,),
    soft_cap=None,
    has_slopes=False,
    deterministic=False,
)
GEMMA = dataclasses.replace(LLAMA, gate="gelu_tanh", windows=(40, None), soft_cap=30.0, has_head_norms=True)
OPT = dataclasses.replace(LLAMA, rotations=(), writes_unrotated=True, has_rms_norm=False, gate=None)
BLOOM = dataclasses.replace(OPT, has_slopes=True)
DETERMINISTIC = dataclasses.replace(LLAMA, deterministic=True)
LATENT = dataclasses.replace(
    LLAMA, num_kv_heads=1, head_dim=40, rotations=((8, True),), latent=LatentSpec(32, 16, 20, q_rank=28)
)
SHORT = dataclasses.replace(LLAMA, max_model_len=16, max_num_seqs=1)


@triton.jit
def _broken_kernel(
    gate_up_ptr, y_ptr, stride, inner, IS_GELU: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):
    tl.static_assert(BLOCK > 1 << 20, "no such block here")


@pytest.fixture
def broken(monkeypatch):
    """Break the kernel of silu_mul, in a process that keeps nothing of it."""
    if DEVICE.type == "cpu" and not INTERPRET:
        pytest.skip("no kernel runs here")
    monkeypatch.setattr(silu_mul, "_gate_kernel", _broken_kernel)
    monkeypatch.setattr(launch, "_references", set())


@pytest.mark.parametrize(
    "shapes",
    [LLAMA, GEMMA, OPT, BLOOM, LATENT, DETERMINISTIC],
    ids=["llama", "gemma", "opt", "bloom", "latent", "deterministic"],
)
def test_all_that_a_model_runs_compiles(shapes):
    assert compile_kernels(shapes, DEVICE, "here", allow_reference=False) == {}


def test_a_kernel_that_does_not_compile_is_named_with_the_device_the_reason_and_the_flag(broken):
    with pytest.raises(KernelError) as refused:
        compile_kernels(LLAMA, DEVICE, "this device", allow_reference=False)
    message = str(refused.value)
    for part in ("of silu_mul ", "this device", f"Triton {triton.__version__}", "no such block here"):
        assert part in message
    assert "--allow-reference-kernels" in message


def test_where_it_is_allowed_that_operation_alone_becomes_its_reference(broken):
    failed = compile_kernels(SHORT, DEVICE, "this device", allow_reference=True)
    assert list(failed) == ["silu_mul"]
    assert "no such block here" in failed["silu_mul"]
    gate_up = torch.randn(3, 20, device=DEVICE)
    torch.testing.assert_close(silu_mul.silu_mul(gate_up), silu_mul.silu_mul_reference(gate_up))
    assert not launch.on_triton(gate_up, "silu_mul")
    assert launch.on_triton(gate_up, "rms_norm")


# Bytes of shared memory that a block may have at most, by compute capability (CUDA C++ Programming Guide,
# "Compute Capabilities").
SHARED_NBYTES = {80: 166_912, 89: 101_376, 90: 232_448}


@pytest.mark.skipif(INTERPRET, reason="the interpreter compiles nothing")
@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize("capability", SHARED_NBYTES)
def test_the_kernels_compile_for_a_device_that_is_not_here_and_fit_its_shared_memory(capability):
    script = Path(__file__).with_name("compile_for.py")
    command = [sys.executable, str(script), str(capability)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = [line.split() for line in done.stdout.splitlines()]
    assert {"_decode_kernel", "_prefill_kernel", "_rms_norm_kernel", "_draw_kernel"} <= {
        name for name, _, _ in compiled
    }
    assert max(int(nbytes) for _, nbytes, _ in compiled) <= SHARED_NBYTES[capability]
    assert [name for name, _, when in compiled if when == "request"] == []
