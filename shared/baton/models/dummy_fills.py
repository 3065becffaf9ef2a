"""What quantized parameters hold without a checkpoint: random bits, and scales that give weights the usual deviation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 1 << 24


def random_bits(tensor: Tensor, std: float, generator: torch.Generator | None) -> None:
    """Fill with any bits: codes that are spread evenly; or eight-bit floats of deviation 1."""
    flat = tensor.view(-1) if tensor.is_contiguous() else tensor.movedim(-1, 0).view(-1)
    if tensor.dtype == torch.float8_e4m3fn:
        for part in torch.split(flat, _CHUNK):
            part.copy_(torch.randn(part.shape, device=part.device, generator=generator).to(part.dtype))
    elif tensor.dtype == torch.int8:
        flat.random_(-127, 128, generator=generator)
    else:
        flat.view(torch.uint8).random_(0, 256, generator=generator)


@dataclass(frozen=True, slots=True)
class ScaleFill:
    """Give every weight the model's deviation."""

    spread: float  # deviation of the values that are scaled

    def __call__(self, tensor: Tensor, std: float, generator: torch.Generator | None) -> None:
        tensor.fill_(std / self.spread)


def spread_of(bits: int) -> float:
    """Return the deviation of codes of so many bits, spread evenly about their middle."""
    return float(2**bits / 12**0.5)


@dataclass(frozen=True, slots=True)
class WordFill:
    """Fill every word with one code, repeated."""

    word: int

    def __call__(self, tensor: Tensor, std: float, generator: torch.Generator | None) -> None:
        tensor.fill_(self.word)


def repeated(code: int, bits: int) -> WordFill:
    """Fill words of 32 bits with one code over and over."""
    word = sum(code << shift for shift in range(0, 32 - bits + 1, bits))
    return WordFill(word - (1 << 32) if word >= 1 << 31 else word)


@dataclass(frozen=True, slots=True)
class InOrder:
    """Say of each input that its group is the one of its place."""

    group: int

    def __call__(self, tensor: Tensor, std: float, generator: torch.Generator | None) -> None:
        groups = torch.arange(tensor.shape[-1], device=tensor.device) // self.group
        tensor.copy_(groups.expand_as(tensor))
