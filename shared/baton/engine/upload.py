"""Small arrays to the device, and results back, without making the host wait."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """Send an array to the device in stream order; on a CPU share its memory.

    Through pinned memory from torch's caching allocator, which reuses a buffer only when its copy is done: the host
    runs a step ahead, so a buffer of one's own would be overwritten before it was read.
    """
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class Download:
    """Tensors on their way to the host."""

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = tensors
        self._done: torch.cuda.Event | None = None
        if tensors and tensors[0].is_cuda:
            self._tensors = tuple(_to_pinned(tensor) for tensor in tensors)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> list[Any]:
        """Wait for them, not for what was launched after them, and give them as lists."""
        return [tensor.tolist() for tensor in self.wait_tensors()]

    def wait_tensors(self) -> tuple[Tensor, ...]:
        """Wait for them, and give them as they are, on the host."""
        if self._done is not None:
            self._done.synchronize()
        return self._tensors


def _to_pinned(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
