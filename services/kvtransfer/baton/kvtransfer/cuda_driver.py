"""The few calls of CUDA's driver that torch has no words for: memory of another process, and copies between addresses.

`libcuda` comes with the driver, so its name is the same wherever a GPU is. Every call is for a thread in which torch has made
the device current.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from baton.errors import ConfigError

HANDLE_NBYTES = 64
_LAZY_PEER_ACCESS = 1


class _Handle(ctypes.Structure):
    _fields_ = (("data", ctypes.c_byte * HANDLE_NBYTES),)


def export_memory(address: int) -> tuple[bytes, int]:
    """Return the handle by which another process opens the allocation around an address, and the address's offset in it.

    Raises:
        ConfigError: the driver shares no such memory.
    """
    base, size, handle = ctypes.c_uint64(), ctypes.c_size_t(), _Handle()
    _call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(address))
    _call("cuIpcGetMemHandle", ctypes.byref(handle), base)
    return bytes(handle), address - base.value


def open_memory(handle: bytes) -> int:
    """Map another process's allocation; return its address here.

    Raises:
        ConfigError: it is gone, or this process's device does not reach it.
    """
    address = ctypes.c_uint64()
    _call("cuIpcOpenMemHandle_v2", ctypes.byref(address), _Handle.from_buffer_copy(handle), _LAZY_PEER_ACCESS)
    return address.value


def close_memory(address: int) -> None:
    """Unmap what `open_memory` gave."""
    _call("cuIpcCloseMemHandle", ctypes.c_uint64(address))


def copy(to: int, source: int, nbytes: int, stream: int) -> None:
    """Start a copy between any two addresses of the process's devices, by their copy engines."""
    result = _driver().cuMemcpyAsync(to, source, nbytes, stream)
    if result:
        raise RuntimeError(f"cuMemcpyAsync failed: {_words(result)}")


def _call(name: str, *arguments: Any) -> None:
    result = getattr(_driver(), name)(*arguments)
    if result:
        raise ConfigError(f"{name} failed: {_words(result)}")


@cache
def _driver() -> Any:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise ConfigError(f"CUDA's driver cannot be loaded: {error}") from None
    driver.cuMemcpyAsync.argtypes = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p)
    return driver


def _words(result: int) -> str:
    text = ctypes.c_char_p()
    _driver().cuGetErrorString(result, ctypes.byref(text))
    return f"{(text.value or b'unknown error').decode()} ({result})"
