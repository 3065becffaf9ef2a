"""The paged KV tensor, its layout, and how many blocks fit.

Block-major: one block holds every layer's K and V of its tokens contiguously, so that it moves between
workers as one piece; attention reads a layer through strides.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from baton.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Shape and type of one block; two workers exchange blocks only when these are equal."""

    num_layers: int
    block_size: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @classmethod
    def of(cls, spec: ModelSpec, block_size: int, dtype: torch.dtype) -> KVLayout:
        """Derive the layout that a model needs."""
        return cls(spec.num_layers, block_size, spec.num_kv_heads, spec.head_dim, dtype)

    @property
    def block_shape(self) -> tuple[int, int, int, int, int]:
        """[layers, 2 (K and V), block_size, kv_heads, head_dim]."""
        return (self.num_layers, 2, self.block_size, self.num_kv_heads, self.head_dim)

    @property
    def block_nbytes(self) -> int:
        """Bytes of one block, all layers."""
        return self.block_size * self.token_nbytes

    @property
    def token_nbytes(self) -> int:
        """Bytes of KV that one token takes."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    def describe(self) -> str:
        """Give the layout as one line of text, which is also what fingerprints and cache keys are made of."""
        shape = "x".join(map(str, self.block_shape))
        return f"block-major {shape} {str(self.dtype).removeprefix('torch.')}"

    def allocate(self, num_blocks: int, device: torch.device) -> Tensor:
        """Make the cache: [num_blocks, layers, 2, block_size, kv_heads, head_dim].

        Zeroed, because padding rows read the scratch block and what they read must be finite.
        """
        return torch.zeros((num_blocks, *self.block_shape), dtype=self.dtype, device=device)

    def allocate_shared(self, num_blocks: int) -> tuple[Tensor, int]:
        """Make the cache on a CPU where other processes can map it too; give its file's descriptor.

        The file has no name: it goes with the last process that has it open or mapped. It may be sealed.
        """
        fd = os.memfd_create("baton-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, num_blocks * self.block_nbytes)
        buffer = mmap.mmap(fd, 0)  # its pages are zero
        return torch.frombuffer(buffer, dtype=self.dtype).view(num_blocks, *self.block_shape), fd
