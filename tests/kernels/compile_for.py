"""Compile what a model runs for a GPU that is not here, and print each kernel with its bytes of shared memory.

    python tests/kernels/compile_for.py 90

Triton's compiler needs no device, only the name of one: its driver is replaced by one that names it, tensors stay on
the CPU, and every launch stops after it has compiled.
"""

import dataclasses
import sys
from unittest import mock

import torch

with mock.patch("torch.cuda.is_available", return_value=True):
    import baton.kernels.launch

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from baton.kernels import compile_check, decode_attention
from baton.kernels.compile_check import KernelShapes, compile_kernels

CAPABILITY = int(sys.argv[1])
LLAMA_8B = KernelShapes(
    dtype=torch.bfloat16,
    block_size=16,
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rotated_dim=128,
    has_rms_norm=True,
    has_head_norms=True,
    gate="silu",
    windows=(None,),
    soft_cap=None,
    deterministic=False,
)
WIDE = dataclasses.replace(LLAMA_8B, head_dim=256, rotated_dim=256, windows=(4096,), soft_cap=50.0)


class NamedDevice:
    """What Triton asks its driver for."""

    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


run = JITFunction.run


def compile_only(self, *args, grid, warmup, **options):
    kernel = run(self, *args, grid=grid, warmup=True, **options)
    print(self.__name__, kernel.metadata.shared)
    return kernel


def attention_only(shapes, device):
    return [operation for operation in operations(shapes, device) if operation[0] == "paged_attention"]


driver.set_active(NamedDevice())
JITFunction.run = compile_only
decide = baton.kernels.launch.on_triton
for module in list(sys.modules.values()):  # tensors of the CPU are taken for the GPU's
    if getattr(module, "on_triton", None) is decide:
        module.on_triton = lambda x, op="": True
decode_attention._num_sms = lambda device: 100
torch.cuda.get_device_capability = lambda device: divmod(CAPABILITY, 10)
compile_kernels(LLAMA_8B, torch.device("cpu"), "a GPU", allow_reference=False)
operations, compile_check._operations = compile_check._operations, attention_only
for shapes in (WIDE, dataclasses.replace(WIDE, dtype=torch.float32)):
    compile_kernels(shapes, torch.device("cpu"), "a GPU", allow_reference=False)
