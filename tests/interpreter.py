"""Triton's interpreter, put in place of the compiler once, as nothing in a process of TRITON_INTERPRET=1 is compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


def install_once() -> None:
    """Exchange the language's functions at a kernel's first launch, and leave them so; let it round as a GPU does.

    Triton does it at each launch and at each call from one function of a kernel to another, by looking through all names of
    its modules: a third of what the tests of sampling took.
    """
    from triton import language as tl
    from triton.runtime import interpreter

    install: Callable[[Any], object] = interpreter._patch_lang

    @cache
    def once(fn: Any) -> Any:
        install(fn)
        return interpreter._LangPatchScope()  # has nothing to take back

    interpreter._patch_lang = once

    convert: Callable[..., Any] = interpreter._convert_float

    def rounded(numbers: Any, held: Any, wanted: Any, rounding: Any) -> Any:
        """Round to e4m3 as a GPU does; Triton 3.7's interpreter gives 64 for 127.5, as it loses what is carried."""
        if (held, wanted) != (tl.float32, tl.float8e4nv):
            return convert(numbers, held, wanted, rounding)
        return torch.tensor(numbers).to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    interpreter._convert_float = rounded
