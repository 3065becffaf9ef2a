"""Decide where an operation runs, and lend Triton to the files that define kernels.

A machine without a GPU never imports Triton: `triton` and `tl` are then stand-ins whose decorators return
what they are given, so that the kernels' files still load. TRITON_INTERPRET=1 (set before the first import)
runs the kernels on CPU tensors.

Triton compiles a kernel again when a number becomes 1 or a multiple of 16, or a tensor begins elsewhere than at a multiple
of 16 bytes. What changes in these ways from step to step is named in `do_not_specialize` and
`do_not_specialize_on_alignment`, or a request would wait for the compiler.
"""

import importlib.util
import os
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
    """Give the version of Triton; None where it is not there or not needed."""
    return triton.__version__ if ON_TRITON else None


_references: set[str] = set()


def use_reference(op: str) -> None:
    """Run an operation as its reference from now on, in this process: its kernel does not compile here."""
    _references.add(op)


def on_triton(x: Tensor, op: str = "") -> bool:
    """Say whether an operation on `x` runs its Triton kernel (CUDA, or the interpreter) rather than its reference.

    op: the name by which `use_reference` knows it, where its reference runs on a GPU too.
    """
    return ON_TRITON and (x.is_cuda or INTERPRET) and op not in _references


def upcasts_dot(x: Tensor) -> bool:
    """Say whether matrix products of `x` must be taken in fp32: the interpreter multiplies bf16's bits as integers."""
    return INTERPRET and x.dtype == torch.bfloat16
