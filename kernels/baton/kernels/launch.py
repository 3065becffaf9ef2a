"""Where an operation runs, how kernels overlap, and Triton for the files that define kernels.

A machine without a GPU never imports Triton: `triton` and `tl` are then stand-ins whose decorators return
what they are given, so that the kernels' files still load. TRITON_INTERPRET=1 (set before the first import)
runs the kernels on CPU tensors.

Triton compiles a kernel again when a number becomes 1 or a multiple of 16, or a tensor begins elsewhere than at a multiple
of 16 bytes. What changes in these ways from step to step is named in `do_not_specialize` and
`do_not_specialize_on_alignment`, or a request would wait for the compiler.

A launch costs the host time by its number of arguments, before the graph is captured and where there is none. So what a
kernel of many arguments is compiled for is one named tuple, a `tl.constexpr`, and its strides are one plain tuple, which
Triton takes apart in C: the rotation's takes 11.2 us of Triton's Python where 35 single arguments took 13.7. What is in such
a tuple is always specialized, whatever `do_not_specialize` says, so what changes from step to step stays outside.

A decode step is hundreds of kernels of microseconds, and the start of each costs as much as some of them take. From compute
capability 9.0 on a kernel may be started while the one before it ends (CUDA's programmatic dependent launch), if it waits
before it touches what that one reads or writes. So every kernel of a model's layers in a decode step is launched with `overlap`, calls
`start_next` first, and before `wait_for_previous` reads nothing but weights, which were there long before the step; all of its
programs wait. Then each kernel has waited for the one before when the next one's wait ends, and whatever ran earlier has ended
too. Kernels that are launched without it, such as the library's, start when the one before has ended, as ever.
"""

import importlib.util
import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

INTERPRET = os.environ.get("TRITON_INTERPRET", "0") == "1"


class _Absent:
    """Stand in for Triton where it is not needed: any attribute is a decorator that changes nothing."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else self


if INTERPRET or (torch.cuda.is_available() and importlib.util.find_spec("triton")):
    import triton
    import triton.language as tl
else:
    triton = tl = _Absent()

ON_TRITON = not isinstance(triton, _Absent)


def triton_version() -> str | None:
    """Return Triton's version; None where it is not there or not needed."""
    return triton.__version__ if ON_TRITON else None


_references: set[str] = set()


def use_reference(op: str) -> None:
    """Run an operation as its reference from now on, in this process: its kernel does not compile here."""
    _references.add(op)


def on_triton(x: Tensor, op: str = "") -> bool:
    """Whether an operation on `x` runs its Triton kernel (on CUDA or in the interpreter), not its reference.

    op: the name by which `use_reference` knows it, where its reference runs on a GPU too.
    """
    return ON_TRITON and (x.is_cuda or INTERPRET) and op not in _references


def upcasts_dot(x: Tensor) -> bool:
    """Whether matrix products of `x` must be taken in fp32: the interpreter multiplies bf16's bits as integers."""
    return INTERPRET and x.dtype == torch.bfloat16


@cache
def num_sms(device: torch.device) -> int:
    """Count the device's multiprocessors; a few in the interpreter."""
    return 4 if INTERPRET else torch.cuda.get_device_properties(device).multi_processor_count


FEW_ROWS = 64
"""Rows up to which a step's kernels overlap: with more the library's products are the larger part, and lose 2 % by it at 256."""


def overlap(num_rows: int, device: torch.device) -> dict[str, bool]:
    """Return the options of a kernel's launch in a decode step: whether it overlaps the kernel before it."""
    overlaps = not INTERPRET and num_rows <= FEW_ROWS and _can_overlap(device)
    return {"OVERLAP": overlaps, "launch_pdl": overlaps}


@cache
def _can_overlap(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit
def start_next(OVERLAP: tl.constexpr):
    """Let the next kernel be started as soon as every program of this one has been."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_previous(OVERLAP: tl.constexpr):
    """Wait until the kernel before this one has ended and what it wrote can be read."""
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
