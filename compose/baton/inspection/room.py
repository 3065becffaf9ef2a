"""How much of a device a model takes, and how many streams run beside one another on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from baton.config import EngineConfig
from baton.doctor.figures import planned
from baton.doctor.prediction import KEPT_NBYTES, MEMORY_SHARE
from baton.engine.kv_cache import KVCacheSpec
from baton.engine.memory import CPU_KV_NBYTES, GIB, host_available
from baton.engine.windows import Reach
from baton.models.loader import resolve_dtype, weights_nbytes
from baton.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Device:
    """Where a model would run."""

    name: str
    memory_nbytes: int
    is_gpu: bool

    @classmethod
    def of(cls, gpu: str | None) -> Device:
        """Find a GPU of the table by its name; None: this machine's first GPU, or its CPU.

        Raises:
            ConfigError: the table has none such.
        """
        if gpu is not None:
            figures = planned(gpu, field="gpu")
            return cls(figures.name, int(figures.memory_gib * GIB), is_gpu=True)
        if torch.cuda.is_available():
            found = torch.cuda.get_device_properties(0)
            return cls(found.name, found.total_memory, is_gpu=True)
        return cls("this machine's CPU", host_available(), is_gpu=False)


@dataclass(frozen=True, slots=True)
class Room:
    """What of a device's memory goes where. On a GPU the KV takes what the rest leaves, on a CPU 1 GiB."""

    device: Device
    dtype: torch.dtype
    max_model_len: int
    weights_nbytes: int
    overhead_nbytes: int
    """Captured steps, CUDA's context, and what a step takes."""
    limit_nbytes: int
    """That may be used, as --gpu-memory-utilization says where it is not set."""
    kv_token_nbytes: int
    num_blocks: int
    reach: Reach

    @classmethod
    def of(cls, spec: ModelSpec, device: Device, max_model_len: int | None = None) -> Room:
        """Count.

        Raises:
            ModelLoadError: the model is not made for contexts of this length.
        """
        dtype = _dtype(spec, device)
        length = max_model_len or spec.max_model_len
        spec.within(length)
        engine = EngineConfig()
        kv = KVCacheSpec.of(spec, engine.block_size, dtype, length)
        weights = weights_nbytes(spec, dtype, length, "cuda" if device.is_gpu else "cpu")
        limit = int(MEMORY_SHARE * device.memory_nbytes)
        overhead = KEPT_NBYTES if device.is_gpu else 0
        spare = limit - weights - overhead
        nbytes = max(0, spare if device.is_gpu else min(spare, CPU_KV_NBYTES))
        return cls(
            device=device,
            dtype=dtype,
            max_model_len=length,
            weights_nbytes=weights,
            overhead_nbytes=overhead,
            limit_nbytes=limit,
            kv_token_nbytes=kv.block_nbytes * len(kv.groups) // kv.block_size,
            num_blocks=max(0, nbytes // kv.block_nbytes - 1) if kv.block_nbytes else 0,
            reach=Reach(kv.block_size, kv.windows, engine.max_num_batched_tokens),
        )

    @property
    def kv_nbytes(self) -> int:
        """Bytes that are left for KV."""
        return self.num_blocks * self.kv_token_nbytes * self.reach.block_size // self.reach.num_groups

    @property
    def fits(self) -> bool:
        """Whether the weights fit, and one stream of the longest context beside them."""
        if not self.kv_token_nbytes:
            return self.weights_nbytes + self.overhead_nbytes <= self.limit_nbytes
        return self.num_blocks > 0 and self.streams(self.max_model_len) >= 1

    def streams(self, context: int) -> int:
        """Count the streams of a context that run at once."""
        return self.num_blocks // self.reach.num_held(context)

    def longest(self) -> int:
        """Return the longest context of which one stream fits, in whole blocks; 0: none."""
        low, high = 0, self.max_model_len // self.reach.block_size
        while low < high:
            middle = (low + high + 1) // 2
            if self.reach.num_held(middle * self.reach.block_size) <= self.num_blocks:
                low = middle
            else:
                high = middle - 1
        return low * self.reach.block_size


def _dtype(spec: ModelSpec, device: Device) -> torch.dtype:
    """As a worker with --dtype auto."""
    if not device.is_gpu:
        return torch.float32
    stored = resolve_dtype(None, spec)
    return torch.bfloat16 if stored == torch.float32 else stored
