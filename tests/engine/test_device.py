"""What a device must be, said before anything is loaded; a kernel that does not compile, said or replaced."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.test_interpreted import HANG_S

from baton.config import EngineConfig
from baton.engine.device import DeviceFacts, check_device
from baton.engine.memory import largest_steps_tried
from baton.errors import ConfigError, OutOfMemory
from baton.kernels.launch import INTERPRET
from baton.models.config import read_spec
from baton.models.spec import ModelSpec

H200 = DeviceFacts("NVIDIA H200", True, (9, 0), "3.6.0")
T4 = DeviceFacts("Tesla T4", True, (7, 5), "3.6.0")


@pytest.fixture
def spec(tiny_checkpoint: Callable[[str], Path]):
    return read_spec(tiny_checkpoint("llama"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
def test_a_device_that_can_run_the_model_is_let_through(spec, capability, dtype) -> None:
    check_device(dataclasses.replace(H200, capability=capability), spec, dtype)


def test_a_gpu_too_old_is_named_with_what_is_needed_and_why(spec) -> None:
    with pytest.raises(ConfigError) as refused:
        check_device(T4, spec, torch.float16)
    message = str(refused.value)
    for part in ("Tesla T4", "7.5", "8.0", "bfloat16", "no other --dtype helps", "--device cpu"):
        assert part in message


def test_heads_wider_than_the_kernels_take_are_refused_with_size_and_limit(spec) -> None:
    check_device(H200, with_heads_of(256, spec), torch.bfloat16)
    with pytest.raises(ConfigError, match=r"272 dimensions \(head_dim.*at most 256.*--device cpu"):
        check_device(H200, with_heads_of(272, spec), torch.bfloat16)


def test_a_type_that_the_kernels_do_not_take_is_refused(spec) -> None:
    with pytest.raises(ConfigError, match=r"torch\.float64 is not valid.*bfloat16, float16, float32.*--dtype"):
        check_device(H200, spec, torch.float64)


def test_a_gpu_without_triton_is_refused(spec) -> None:
    with pytest.raises(ConfigError, match=r"needs the package triton.*--device cpu"):
        check_device(dataclasses.replace(H200, triton=None), spec, torch.bfloat16)


def test_a_cpu_takes_any_model(spec) -> None:
    check_device(DeviceFacts("CPU"), with_heads_of(512, spec), torch.float32)


def with_heads_of(head_dim: int, spec: ModelSpec) -> ModelSpec:
    layer = spec.layers[0]
    attention = dataclasses.replace(layer.attention, head_dim=head_dim)
    return dataclasses.replace(spec, layers=(dataclasses.replace(layer, attention=attention),))


def test_plain_torch_in_place_of_a_kernel_is_no_part_of_deterministic() -> None:
    with pytest.raises(ConfigError, match="--allow-reference-kernels and --deterministic"):
        EngineConfig(deterministic=True, allow_reference_kernels=True)


def test_a_device_that_runs_out_at_start_is_told_with_the_flags_to_move() -> None:
    with (
        pytest.raises(OutOfMemory, match=r"steps of 8192 tokens and of 256 sequences.*--max-num-batched-tokens"),
        largest_steps_tried(EngineConfig()),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory.")


BROKEN = """
import sys
from baton.kernels import rms_norm
from baton.kernels.launch import tl, triton

@triton.jit
def broken(x_ptr, residual_ptr, weight_ptr, y_ptr, x_stride, residual_stride, hidden, eps, weight_offset,
           HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    tl.static_assert(BLOCK > 1 << 20, "no such block here")

rms_norm._rms_norm_kernel = broken

from baton.errors import KernelError
from baton.llm import LLM, SamplingParams

def load(**given):
    return LLM(sys.argv[1], skip_tokenizer_init=True, max_model_len=64, max_num_seqs=2, max_num_batched_tokens=64,
               kv_cache_memory_bytes=1 << 20, **given)

try:
    load()
except KernelError as error:
    print(error)
llm = load(allow_reference_kernels=True)
greedy = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, detokenize=False)
print(llm.generate([{"prompt_token_ids": [5, 6, 7]}], greedy, use_tqdm=False)[0].outputs[0].token_ids)
"""


@pytest.mark.skipif(INTERPRET, reason="run by itself in the interpreter")
@pytest.mark.timeout(HANG_S)
@pytest.mark.skipif(torch.cuda.is_available(), reason="test_compile_check.py shows it on the GPU")
def test_a_kernel_that_does_not_compile_ends_the_start_unless_plain_torch_is_allowed(
    tiny_checkpoint: Callable[[str], Path],
) -> None:
    """In a process of its own: what is compiled, and what is not, holds for a process."""
    from baton.llm import LLM, SamplingParams

    folder = tiny_checkpoint("llama")
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, str(folder)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    refusal, *_, token_ids = done.stdout.strip().splitlines()
    for part in ("kernel of rms_norm", "on CPU", "Triton 3.", "no such block here", "--allow-reference-kernels"):
        assert part in refusal
    assert "reference_kernel" in done.stdout + done.stderr
    assert "in plain torch, and so without CUDA graphs: rms_norm\n" in done.stderr
    llm = LLM(str(folder), skip_tokenizer_init=True, device="cpu", use_tqdm=False, kv_cache_memory_bytes=1 << 20)
    greedy = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, detokenize=False)
    output = llm.generate([{"prompt_token_ids": [5, 6, 7]}], greedy, use_tqdm=False)[0].outputs[0]
    assert str(output.token_ids) == token_ids
