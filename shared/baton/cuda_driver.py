"""The few calls of CUDA's driver that torch has no words for: memory of another process, and copies between addresses.

`libcuda` comes with the driver, so its name is the same wherever a GPU is. Every call is for a thread in which torch has made
the device current.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baton.errors import ConfigError
from baton.logs import get_logger

log = get_logger("cuda")
Numbers = NDArray[np.uint64]
HANDLE_NBYTES = 64
_LAZY_PEER_ACCESS = 1
_PORTABLE = 1
_IN_STREAM_ORDER = 1


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


def register(address: int, nbytes: int) -> None:
    """Pin host memory of this process, whose pages others may share.

    Raises:
        ConfigError: the driver cannot.
    """
    _call("cuMemHostRegister_v2", ctypes.c_void_p(address), ctypes.c_size_t(nbytes), ctypes.c_uint(_PORTABLE))


def unregister(address: int) -> None:
    """End what `register` began."""
    _call("cuMemHostUnregister", ctypes.c_void_p(address))


def joint_runs(theirs: Sequence[int], ours: Sequence[int], piece: int = 0) -> Iterator[tuple[int, int, int]]:
    """Find the runs of blocks that are neighbours on both sides: the first of each on either, and how many there are.

    `piece` is of `theirs`: a run ends where so many end, counted from 0; 0: it ends nowhere.
    """
    assert len(theirs) == len(ours)
    first = count = 0
    for at in range(1, len(theirs) + 1):
        count += 1
        if (
            at < len(theirs)
            and theirs[at] == theirs[first] + count
            and ours[at] == ours[first] + count
            and not (piece and theirs[at] % piece == 0)
        ):
            continue
        yield theirs[first], ours[first], count
        first, count = at, 0


def run_addresses(
    runs: Iterator[tuple[int, int, int]], nbytes: int, theirs: int, ours: int
) -> tuple[Numbers, Numbers, Numbers]:
    """Return where runs of blocks of `nbytes` begin in two memories, given their block 0, and the runs' sizes."""
    found = np.array(list(runs), dtype=np.uint64) * np.uint64(nbytes)
    in_theirs, in_ours, sizes = np.ascontiguousarray(found.T)
    return in_theirs + np.uint64(theirs), in_ours + np.uint64(ours), sizes


class Copier:
    """Starts copies by the devices' copy engines, many in one call where the driver can (CUDA 12.8).

    One call for each of 128 blocks takes 0.3 to 0.5 ms, as long as NVLink takes to move them.
    """

    def __init__(self) -> None:
        # These calls only put something into a queue. Other calls let go of the interpreter meanwhile, and a thread that is
        # busy in Python may keep it for 5 ms.
        self._driver = ctypes.PyDLL("libcuda.so.1")
        self._driver.cuMemcpyAsync.argtypes = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p)
        self._batch = getattr(self._driver, "cuMemcpyBatchAsync", None)
        self._attributes = (ctypes.c_uint32 * 6)(_IN_STREAM_ORDER)  # no hints of places, which our pointers do not need
        self._first = (ctypes.c_size_t * 1)(0)
        if self._batch is not None:
            pointer, size = ctypes.c_void_p, ctypes.c_size_t
            self._batch.argtypes = (pointer, pointer, pointer, size, pointer, pointer, size, pointer, pointer)

    def start(self, to: Numbers, sources: Numbers, sizes: Numbers, stream: int) -> None:
        """Start copies between addresses that the current device reaches, in any order, after what is in the stream."""
        if self._batch is not None:
            result = self._batch(
                to.ctypes.data,
                sources.ctypes.data,
                sizes.ctypes.data,
                len(to),
                self._attributes,
                self._first,
                1,
                ctypes.byref(ctypes.c_size_t()),
                stream,
            )
            if not result:
                return
            log.info("copies_not_batched", reason=_words(result))
            self._batch = None
        for one in zip(to.tolist(), sources.tolist(), sizes.tolist(), strict=True):
            result = self._driver.cuMemcpyAsync(*one, stream)
            if result:
                raise RuntimeError(f"cuMemcpyAsync failed: {_words(result)}")


def _call(name: str, *arguments: Any) -> None:
    result = getattr(_driver(), name)(*arguments)
    if result:
        raise ConfigError(f"{name} failed: {_words(result)}")


@cache
def _driver() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise ConfigError(f"CUDA's driver cannot be loaded: {error}") from None


def _words(result: int) -> str:
    text = ctypes.c_char_p()
    _driver().cuGetErrorString(result, ctypes.byref(text))
    return f"{(text.value or b'unknown error').decode()} ({result})"
