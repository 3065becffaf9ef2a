"""Pages of host memory under KV: given back to the system, which hands out others, all zeros, when they are written again."""

from __future__ import annotations

import ctypes
import mmap

from torch import Tensor

from baton.errors import ConfigError

_REMOVE = 9
"""MADV_REMOVE, which Python has no name for in all versions: frees the pages of a shared file, for all who map it."""


def give_back(kv: Tensor) -> None:
    """Free the whole pages under a tensor of a CPU: its own, or those of the file that it maps.

    Raises:
        ConfigError: the system does not take them.
    """
    first = -(-kv.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (kv.data_ptr() + kv.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end <= first:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    # memory that is no file's refuses the first, and only then takes the second
    if libc.madvise(first, end - first, _REMOVE) and libc.madvise(first, end - first, mmap.MADV_DONTNEED):
        raise ConfigError(f"memory of KV cannot be given back: {ctypes.get_errno()}")
