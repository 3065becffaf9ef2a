"""Loading onto a GPU; each family's step there against the same checkpoint on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.models.stepping import Stepper, Stream
from tests.tiny_models import FAMILIES

from baton.models import reading
from baton.models.loader import load_model
from baton.models.parameters import Parameters

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
PROMPT = list(range(5, 60))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama-biases", "gpt2", "phi3", "qwen2"])
def test_weights_stream_to_the_gpu_in_pieces(
    family: str, dtype: str, tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(reading.CHUNK_NBYTES, "cuda", 5000)
    monkeypatch.setattr(Parameters, "settle", lambda parameters: None)  # compared as they were loaded
    folder = tiny_checkpoint(family)
    there = load_model(folder, dtype=dtype, device="cuda", progress=False).parameters.targets
    here = load_model(folder, dtype=dtype, progress=False).parameters.targets
    assert here
    for name, target in here.items():
        for piece, moved in zip(target.pieces, there[name].pieces, strict=True):
            assert moved.tensor.device.type == "cuda"
            assert torch.equal(moved.tensor.cpu(), piece.tensor)


def test_dummy_weights_are_made_on_the_gpu(
    tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Parameters, "settle", lambda parameters: None)
    model = load_model(tiny_checkpoint("llama"), load_format="dummy", dtype="bfloat16", device="cuda")
    assert model.parameters.fills
    assert all(tensor.is_cuda and bool(tensor.isfinite().all()) for tensor, _ in model.parameters.fills)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_computes_the_same_on_the_gpu(family: str, tiny_checkpoint: Callable[[str], Path]) -> None:
    logits = []
    for device in ("cpu", "cuda"):
        model = load_model(tiny_checkpoint(family), dtype="float32", device=device, progress=False)
        stepper, stream = Stepper(model), Stream(list(PROMPT))
        stepper.step((stream, 40))
        stepper.step((stream, 14))
        stepper.step((stream, 1))
        logits.append(torch.stack(stream.logits).cpu())
    # Matrix products and attention may use TF32 there.
    assert (logits[0] - logits[1]).abs().max() / logits[0].abs().max() < 2e-2
