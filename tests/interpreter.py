"""Triton's interpreter, put in place of the compiler once, as nothing in a process of TRITON_INTERPRET=1 is compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any


def install_once() -> None:
    """Exchange the language's functions at a kernel's first launch, and leave them so.

    Triton does it at each launch and at each call from one function of a kernel to another, by looking through all names of
    its modules: a third of what the tests of sampling took.
    """
    from triton.runtime import interpreter

    install: Callable[[Any], object] = interpreter._patch_lang

    @cache
    def once(fn: Any) -> Any:
        install(fn)
        return interpreter._LangPatchScope()  # has nothing to take back

    interpreter._patch_lang = once
