"""Whole numbers of few bits, as formats pack them into words of 32 bits, the lowest bits first."""

from __future__ import annotations

import torch
from torch import Tensor

from baton.errors import ModelLoadError

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where AutoAWQ's word has the code of each of its eight columns."""


def unpack(words: Tensor, bits: int) -> Tensor:
    """Take int32 [rows, words] apart into uint8 [rows, codes], one stream of bits a row."""
    if bits == 3:
        return _unpack_three(words)
    data = words.contiguous().view(torch.uint8)
    if bits == 8:
        return data
    mask = (1 << bits) - 1
    return torch.stack([data >> shift & mask for shift in range(0, 8, bits)], -1).view(len(data), -1)


def unpack_awq(words: Tensor) -> Tensor:
    """Take AutoAWQ's words [rows, words] of eight codes apart."""
    codes = unpack(words, 4).view(len(words), -1, 8)
    return codes[:, :, list(AWQ_ORDER)].reshape(len(words), -1)


def _unpack_three(words: Tensor) -> Tensor:
    """Three words have 32 codes, two of which lie in two words."""
    wide = words.contiguous().view(len(words), -1, 3).long() & 0xFFFFFFFF
    codes = []
    for position in range(0, 96, 3):
        word, shift = divmod(position, 32)
        code = wide[:, :, word] >> shift
        if shift > 29:
            code = code | wide[:, :, word + 1] << (32 - shift)
        codes.append((code & 7).to(torch.uint8))
    return torch.stack(codes, -1).view(len(words), -1)


def as_int8(codes: Tensor) -> Tensor:
    """Make codes 0 to 255 the whole numbers -128 to 127."""
    return (codes.contiguous() ^ 0x80).view(torch.int8)


def without_middle(zeros: Tensor, middle: int) -> Tensor | None:
    """Leave zeros out that are all in the middle, as kernels take it where there are none."""
    return None if bool((zeros == middle).all()) else zeros.contiguous()


def order_of_groups(g_idx: Tensor, group: int, source: str) -> Tensor | None:
    """Put the inputs of one group side by side; None: they are.

    g_idx: [modules, inputs], the group of each input of modules that are multiplied together.

    Raises:
        ModelLoadError: the modules differ, or a group is not of `group` inputs.
    """
    first, places = g_idx[0], torch.arange(g_idx.shape[1], device=g_idx.device)
    order = torch.argsort(first, stable=True)
    if not bool((g_idx == first).all()) or not bool((first[order] == places // group).all()):
        raise ModelLoadError(
            f"{source}: g_idx of modules that are multiplied together differ, or have groups that are not of {group} inputs "
            "each. Take a checkpoint without activation order (desc_act=false, no actorder), or the one of 16 bits."
        )
    return None if bool((order == places).all()) else order
