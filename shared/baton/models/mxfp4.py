"""MXFP4, as gpt-oss publishes its experts: blocks of 32 numbers of four bits (e2m1) under one exponent (e8m0).

A byte has two numbers, the first in its low bits. Twice an e2m1 number is whole, so values are kept as int8 and the exponents are
one less. Only experts are stored so; everything else is as it was trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baton.errors import ModelLoadError
from baton.models.dummy_fills import random_bits
from baton.models.linear import ByModule, Stored, WeightForm
from baton.models.module_rules import QuantizedFields
from baton.models.weight_only import Layout, Values, WeightOnlyForm, tensors_nbytes

BLOCK = 32
TWICE = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Twice the number of each code."""
_SPREAD = 2.6


@dataclass(frozen=True, slots=True)
class Mxfp4(WeightOnlyForm):
    """Blocks along the inputs."""

    source: str

    def stored(self, num_outputs: int, num_inputs: int) -> Sequence[Stored]:
        if num_inputs % BLOCK:
            raise ModelLoadError(
                f"{self.source}: blocks of {BLOCK} do not divide the {num_inputs} inputs of a layer. Correct config.json, or "
                "take the checkpoint of 16 bits."
            )
        groups = num_inputs // BLOCK
        return (
            Stored("blocks", (num_outputs, groups, BLOCK // 2), 0, 1, torch.uint8, random_bits),
            Stored("scales", (num_outputs, groups), 0, 1, torch.uint8, _usual_exponent),
        )

    def layout(self, tensors: Mapping[str, Tensor]) -> Layout:
        num_outputs, groups = tensors["scales"].shape
        nbytes = tensors_nbytes(*tensors.values())
        return Layout(num_outputs, groups * BLOCK, groups, nbytes, torch.int8)

    def values(self, tensors: Mapping[str, Tensor], sizes: Sequence[int]) -> Values:
        blocks, scales = tensors["blocks"], tensors["scales"]
        codes = torch.stack([blocks & 15, blocks >> 4], -1).view(len(blocks), -1)
        twice = torch.tensor(TWICE, dtype=torch.int8, device=blocks.device)
        return Values(twice[codes.int()], torch.exp2(scales.float() - 128))


def _usual_exponent(tensor: Tensor, std: float, generator: torch.Generator | None) -> None:
    tensor.fill_(127 + round(math.log2(std / _SPREAD)))


def read(described: QuantizedFields) -> WeightForm | ByModule:
    """Read `quant_method: mxfp4`: experts have it, and nothing else."""
    form = Mxfp4(described.fields.source)
    return ByModule(lambda module: form if ".experts." in module else described.plain, described.fields.source)
