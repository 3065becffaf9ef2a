"""The paged KV tensor: which layers share a block, and what a sequence holds of each group of layers.

Block-major: one block holds the K and V of its tokens, for all layers of one group, contiguously, so that it moves
between workers as one piece; attention reads a layer through strides. A group has layers of one kind. All groups' blocks
are of one size and come from one pool, so memory goes where it is needed.
"""

from __future__ import annotations

import mmap
import os
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from baton.models.spec import ModelSpec

KVKind = Literal["full", "window", "latent", "state"]
"""What a layer keeps: K and V of all tokens, of the last ones, one vector a token, one state a sequence.

Today's families have the first three."""


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers whose KV of the same tokens lies in one block."""

    layers: tuple[int, ...]
    kind: KVKind
    block_shape: tuple[int, ...]
    """Of one layer: [2 (K and V), block_size, kv_heads, head_dim]; of a latent [1, block_size, 1, width]."""
    dtype: torch.dtype
    window: int | None = None
    """Positions that a query sees, its own included; None: all."""


@dataclass(frozen=True, slots=True)
class KVCacheSpec:
    """The groups of a model's layers; two workers exchange blocks only when these are equal."""

    groups: tuple[KVGroup, ...]
    block_size: int

    @classmethod
    def of(cls, spec: ModelSpec, block_size: int, dtype: torch.dtype, max_model_len: int) -> KVCacheSpec:
        """Group a model's layers by their window in contexts of `max_model_len`, those that see all first.

        Groups have as many layers as the smallest kind, or as the largest where that wastes less than a third.
        """
        by_window: dict[int | None, list[int]] = defaultdict(list)
        windows = (None,) * spec.num_layers if spec.is_encoder else spec.windows_within(max_model_len)
        for layer, window in enumerate(windows):
            by_window[window].append(layer)
        fewest, most = min(map(len, by_window.values())), max(map(len, by_window.values()))
        size = most if 2 * most < 3 * fewest else fewest
        shape = (1 if spec.latent else 2, block_size, spec.num_kv_heads, 0 if spec.is_encoder else spec.head_dim)
        whole: KVKind = "latent" if spec.latent else "full"
        groups = [
            KVGroup(tuple(layers[at : at + size]), whole if window is None else "window", shape, dtype, window)
            for window, layers in sorted(by_window.items(), key=lambda item: item[0] or 0)
            for at in range(0, len(layers), size)
        ]
        return cls(tuple(groups), block_size)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Each group's window."""
        return tuple(group.window for group in self.groups)

    @property
    def dtype(self) -> torch.dtype:
        """Of all groups."""
        return self.groups[0].dtype

    @property
    def block_shape(self) -> tuple[int, ...]:
        """[layers of a group, 2 (K and V), block_size, kv_heads, head_dim]; 1 in place of 2 for a latent."""
        return (max(len(group.layers) for group in self.groups), *self.groups[0].block_shape)

    @property
    def block_nbytes(self) -> int:
        """Bytes of one block."""
        nbytes = self.dtype.itemsize
        for length in self.block_shape:
            nbytes *= length
        return nbytes

    @property
    def places(self) -> list[tuple[int, int]]:
        """Of each layer: its group, and its place in that group's blocks."""
        found = {layer: (g, at) for g, group in enumerate(self.groups) for at, layer in enumerate(group.layers)}
        return [found[layer] for layer in range(len(found))]

    def describe(self) -> str:
        """Write the spec as one line, of which fingerprints and cache keys are made."""
        shape = "x".join(map(str, self.block_shape))
        line = f"block-major {shape} {str(self.dtype).removeprefix('torch.')}"
        if self.windows == (None,):
            return line
        return "; ".join([line, *(f"{group.window or 'all'}: {group.layers}" for group in self.groups)])

    def caches(self, kv: Tensor) -> list[Tensor]:
        """View the cache by layer: [num_blocks, 2, block_size, kv_heads, head_dim] each; 1 in place of 2 for a latent."""
        return [kv[:, at] for _, at in self.places]

    def allocate(self, num_blocks: int, device: torch.device) -> Tensor:
        """Make the cache: [num_blocks, *block_shape].

        Zeroed, because padding rows read the scratch block and what they read must be finite.
        """
        return torch.zeros((num_blocks, *self.block_shape), dtype=self.dtype, device=device)

    def allocate_shared(self, num_blocks: int) -> tuple[Tensor, int]:
        """Make the cache on a CPU where other processes can map it too; return its file's descriptor with it.

        The file has no name: it goes with the last process that has it open or mapped. It may be sealed.
        """
        fd = os.memfd_create("baton-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, num_blocks * self.block_nbytes)
        buffer = mmap.mmap(fd, 0)  # its pages are zero
        return torch.frombuffer(buffer, dtype=self.dtype).view(num_blocks, *self.block_shape), fd
