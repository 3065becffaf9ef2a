"""What fits: weights, KV blocks, the longest context, streams. Said before anything large is loaded."""

from __future__ import annotations

import contextlib
import dataclasses
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from baton.config import AUTO_LEN, EngineConfig
from baton.engine.kv_cache import KVCacheSpec
from baton.engine.windows import Reach
from baton.errors import OutOfMemory

GIB = 2**30
GRAPHS_NBYTES = GIB
"""Kept back on a GPU for captured steps and their workspace."""
CONTEXT_NBYTES = GIB // 2
"""What a process takes of a GPU beside torch's allocations: CUDA's context and compiled kernels."""
PLACES = 2**16
"""Blocks of a model that keeps nothing of its prompts: only places in steps, a million tokens of them."""
CPU_KV_NBYTES = GIB
"""KV memory on a CPU unless told: enough for hundreds of thousands of tokens of a small model."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How a device's memory is spent."""

    weights_nbytes: int
    block_nbytes: int
    num_blocks: int  # one of them is scratch
    max_model_len: int
    reach: Reach

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self.reach.block_size

    @property
    def kv_nbytes(self) -> int:
        """Bytes of the KV tensor."""
        return self.num_blocks * self.block_nbytes

    @property
    def num_tokens(self) -> int:
        """Tokens of the longest sequence whose KV fits."""
        reach, num_blocks = self.reach, self.num_blocks - 1
        if reach.num_held(2**31) <= num_blocks:  # windows everywhere: as long as you like
            return 2**31
        size = reach.block_size
        return size * bisect_right(range(num_blocks), num_blocks, key=lambda n: reach.num_held((n + 1) * size))

    def within(self, config: EngineConfig) -> MemoryPlan:
        """Shorten the context to what the memory holds, if that is asked; never below a token and its answer.

        To a round number: workers serve together only if their contexts are equal, and of two equal devices one has
        some blocks more.
        """
        if config.max_model_len != AUTO_LEN or self.num_tokens >= self.max_model_len:
            return self
        grain = 1 << max(0, self.num_tokens.bit_length() - 4)  # an eighth to a sixteenth
        return dataclasses.replace(self, max_model_len=max(2, self.num_tokens // grain * grain))

    def describe(self) -> str:
        """The line that is printed at start."""
        num_blocks, reach = self.num_blocks - 1, self.reach
        longest = reach.num_held(self.max_model_len)
        line = (
            f"weights {_size(self.weights_nbytes)}, KV {_size(self.kv_nbytes)} "
            f"({num_blocks} blocks of {self.block_size} tokens), longest context {self.max_model_len} tokens, "
            f"{num_blocks / longest:.1f} streams of that length or {num_blocks // reach.num_held(1024)} of 1024 tokens"
        )
        if not reach.windowed:
            return line
        windows = ", ".join("all" if window is None else str(window) for window in reach.windows)
        whole = reach.num_groups * reach.num_blocks(self.max_model_len)
        return (
            f"{line}; as groups of layers see {windows} tokens, the longest context takes {longest} blocks, not {whole}"
        )


def plan_memory(
    config: EngineConfig, kv_spec: KVCacheSpec, *, weights_nbytes: int, max_model_len: int, device: torch.device
) -> MemoryPlan:
    """Decide the number of KV blocks.

    Raises:
        OutOfMemory: the weights, or weights and one longest sequence, do not fit; says by how much and which
            flag moves it.
    """
    limit = max(0, device_limit(config, device))
    if weights_nbytes > limit:
        raise OutOfMemory(
            f"the weights need {_size(weights_nbytes)}, but only {_size(limit)} of {device.type} memory may be used "
            f"(--gpu-memory-utilization {config.gpu_memory_utilization}, less what other programs hold). Raise that share, "
            f"stop what else runs there, or use a smaller model, a 16-bit --dtype or a larger device."
        )
    num_blocks = _num_blocks(config, kv_spec, limit - weights_nbytes, device)
    reach = Reach(kv_spec.block_size, kv_spec.windows, config.max_num_batched_tokens)
    plan = MemoryPlan(weights_nbytes, kv_spec.block_nbytes, num_blocks, max_model_len, reach).within(config)
    if weights_nbytes + plan.kv_nbytes > limit:
        raise OutOfMemory(
            f"weights ({_size(weights_nbytes)}) and KV cache ({_size(plan.kv_nbytes)}) exceed the {_size(limit)} of "
            f"{device.type} memory that may be used. Lower --kv-cache-memory-bytes or --num-gpu-blocks-override."
        )
    if plan.num_tokens < plan.max_model_len:
        raise OutOfMemory(
            f"the KV cache holds {max(0, plan.num_tokens)} tokens ({_size(max(0, plan.kv_nbytes))}), fewer than one sequence of "
            f"max_model_len={max_model_len}. Lower --max-model-len to {max(1, plan.num_tokens)}, or give more memory with "
            f"--gpu-memory-utilization or --kv-cache-memory-bytes."
        )
    return plan


def with_kv_of(
    config: EngineConfig, memory: MemoryPlan, weights_nbytes: int, step_nbytes: int, device: torch.device
) -> MemoryPlan:
    """Plan the KV cache of a GPU anew, now that the weights are there and a step's memory is known.

    Raises:
        OutOfMemory: what is left is less than one longest sequence.
    """
    spare = device_limit(config, device) - step_nbytes - GRAPHS_NBYTES
    asked = config.num_gpu_blocks_override is not None or config.kv_cache_memory_bytes is not None
    asked = asked or not memory.block_nbytes
    num_blocks = memory.num_blocks if asked else max(0, spare) // memory.block_nbytes
    plan = dataclasses.replace(memory, weights_nbytes=weights_nbytes, num_blocks=num_blocks).within(config)
    if plan.kv_nbytes > spare or plan.num_tokens < plan.max_model_len:
        raise OutOfMemory(
            f"a step of {config.max_num_batched_tokens} tokens takes {_size(step_nbytes)} beside the weights "
            f"({_size(weights_nbytes)}), which leaves {_size(max(0, spare))} for the KV cache; it needs "
            f"{_size(max(plan.kv_nbytes, memory.reach.num_held(plan.max_model_len) * memory.block_nbytes))}. Lower "
            f"--max-num-batched-tokens or --max-model-len, or raise --gpu-memory-utilization."
        )
    return plan


def swap_space_nbytes(config: EngineConfig, memory: MemoryPlan) -> int:
    """Return the bytes of `config.swap_space`, whole blocks.

    Raises:
        OutOfMemory: the host has not so much left.
    """
    asked, available = int(config.swap_space * GIB), host_available()
    if asked > available:
        raise OutOfMemory(
            f"swap_space={config.swap_space:g} GiB is more than the {_size(max(0, available))} that this host has left. "
            f"Lower --swap-space; each worker takes that much."
        )
    return max(1, asked // memory.block_nbytes) * memory.block_nbytes


def host_available() -> int:
    """Bytes of the host's memory that may still be taken."""
    return min(int(psutil.virtual_memory().available), _cgroup_available())


@contextlib.contextmanager
def largest_steps_tried(config: EngineConfig) -> Iterator[None]:
    """Say which flag to move when a device runs out of memory in the steps that the start tries.

    Raises:
        OutOfMemory: in place of torch's own error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"the device ran out of memory while the start tried steps of {config.max_num_batched_tokens} tokens and of "
            f"{config.max_num_seqs} sequences beside the weights. Lower --max-num-batched-tokens or --max-num-seqs; where "
            f"other programs use the device, lower --gpu-memory-utilization."
        ) from error


def device_limit(config: EngineConfig, device: torch.device) -> int:
    """Bytes that may still be taken on a device: our share of the whole, less what we have, if that is free.

    What other processes have is theirs: two workers of one GPU are given half of it each.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        ours = torch.cuda.memory_reserved(device) + CONTEXT_NBYTES
        return min(int(total * config.gpu_memory_utilization) - ours, free)
    return int(host_available() * config.gpu_memory_utilization)


def _num_blocks(config: EngineConfig, kv_spec: KVCacheSpec, spare: int, device: torch.device) -> int:
    if config.num_gpu_blocks_override is not None:
        return config.num_gpu_blocks_override + 1
    if not kv_spec.block_nbytes:
        return PLACES
    nbytes = config.kv_cache_memory_bytes
    if nbytes is None:
        nbytes = min(spare, CPU_KV_NBYTES) if device.type == "cpu" else spare
    return nbytes // kv_spec.block_nbytes


def _cgroup_available() -> int:
    """Read what the container's memory limit leaves (cgroup 2); a very large number without one.

    File pages that nobody uses count as used there, the weights just read among them, and are given up when needed.
    """
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text().strip()
        used = int((root / "memory.current").read_text())
        stat = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 2**62
    return 2**62 if limit == "max" else max(0, int(limit) - used + int(stat.get("inactive_file", 0)))


def _size(nbytes: int) -> str:
    return f"{nbytes / GIB:.2f} GiB" if nbytes >= GIB // 10 else f"{nbytes / 2**20:.1f} MiB"
