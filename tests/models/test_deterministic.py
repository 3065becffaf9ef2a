"""A deterministic model gives a token the same bits whatever its steps hold beside it and however its prompt was cut."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.models.stepping import Stepper, Stream
from tests.tiny_models import FAMILIES
from torch import Tensor

from baton.models.config import read_spec
from baton.models.loader import load_model

HAS_GPU = torch.cuda.is_available()
DTYPES = ("float32", "bfloat16") if HAS_GPU else ("float32",)
LENGTH = 150


def _tokens(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(211) for _ in range(length)]


def _logits(stream: Stream) -> Tensor:
    return torch.stack(stream.logits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_no_logit_depends_on_chunks_or_neighbours(
    family: str, dtype: str, tiny_checkpoint: Callable[[str], Path]
) -> None:
    device = "cuda" if HAS_GPU else "cpu"
    if HAS_GPU and read_spec(tiny_checkpoint(family)).latent:
        pytest.skip("an engine refuses it")
    model = load_model(tiny_checkpoint(family), dtype=dtype, device=device, progress=False, deterministic=True)
    whole = Stream(_tokens(0, LENGTH))
    Stepper(model).step((whole, LENGTH))

    cut, stepper = Stream(_tokens(0, LENGTH)), Stepper(model, seed=1)
    for n in (1, 16, 64, 1, 3, 62, 1, 1, 1):
        stepper.step((cut, n))
    assert torch.equal(_logits(cut), _logits(whole))

    crowded, stepper = Stream(_tokens(0, LENGTH)), Stepper(model, seed=2)
    others = [Stream(_tokens(seed, 40)) for seed in range(1, 9)]
    for n in (40, 70, 1, 30, 1, 1, 7):
        work = [(other, 1 + seed % 3) for seed, other in enumerate(others)]
        stepper.step((crowded, n), *work)
    assert torch.equal(_logits(crowded), _logits(whole))
