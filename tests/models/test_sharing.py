"""Ranks of a tensor-parallel group read their shares of a checkpoint, and no more."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny_models import FAMILIES, MORE
from tests.tiny_relabelled import RELABELLED
from torch import Tensor

from baton.errors import ModelLoadError
from baton.models import reading
from baton.models.checkpoint import SINGLE, read_entries
from baton.models.config import read_spec
from baton.models.families import BY_NAME
from baton.models.fp8 import Fp8
from baton.models.ops import FASTEST
from baton.models.parameters import Parameters, Share, Target
from baton.models.weights import PREFIXES, load_weights, match

Checkpoint = Callable[[str], Path]
CPU = torch.device("cpu")


def load_rank(folder: Path, share: Share, device: torch.device = CPU) -> Parameters:
    """Build one rank's parameters, and load them where they have memory."""
    spec = read_spec(folder)
    parameters = Parameters(torch.float32, device, FASTEST, spec.weight_form, share)
    BY_NAME[spec.family].build(spec, parameters)
    if device.type != "meta":
        load_weights(parameters, match(parameters, read_entries(folder), str(folder)), progress=False)
    return parameters


def stored_tensors(folder: Path, targets: Mapping[str, Target]) -> dict[str, Tensor]:
    """The checkpoint's tensors by Baton's names."""
    tensors = load_file(folder / SINGLE)
    return {
        name: next(tensors[prefix + name] for prefix in ("", *PREFIXES) if prefix + name in tensors) for name in targets
    }


# One KV head cannot be divided, nor a norm over all heads.
WHOLE = ("llama-tied-mqa", "falcon-7b", "olmo2", "olmo3", "olmoe")


@pytest.mark.parametrize("family", [name for name in sorted(FAMILIES | MORE | RELABELLED) if name not in WHOLE])
def test_two_ranks_hold_the_two_halves_of_every_divided_tensor(family: str, tiny_checkpoint: Checkpoint) -> None:
    folder = tiny_checkpoint(family)
    ranks = [load_rank(folder, Share(rank, 2)).targets for rank in (0, 1)]
    divided = 0
    for name, tensor in stored_tensors(folder, ranks[0]).items():
        times_held = torch.zeros_like(tensor)
        for targets in ranks:
            assert targets[name].shape == tensor.shape
            for piece in targets[name].pieces:
                box = tuple(slice(of.start, of.stop, of.step) for of in piece.box)
                assert torch.equal(piece.tensor, tensor[box])
                times_held[box] += 1
        assert times_held.unique().tolist() in ([1.0], [2.0])  # once, or whole on each rank
        divided += bool(times_held.max() == 1)
    assert divided >= read_spec(folder).num_layers * 4


@pytest.mark.parametrize("chunk_nbytes", [100, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_shares_multiply_to_the_whole_product(
    chunk_nbytes: int, dtype: torch.dtype, tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(reading.CHUNK_NBYTES, "cpu", chunk_nbytes)
    folder = tiny_checkpoint("llama-biases")
    x, wide = torch.randn(5, 64).to(dtype), torch.randn(5, 96).to(dtype)

    def products(share: Share) -> tuple[Tensor, Tensor]:
        parameters = Parameters(dtype, CPU, share=share)
        up = parameters.linear(
            [("layers.1.mlp.gate_proj", 96), ("layers.1.mlp.up_proj", 96)], 64, bias=True, split="out"
        )
        down = parameters.linear([("layers.1.mlp.down_proj", 64)], 96, bias=True, split="in")
        entries = {name: entry for name, entry in read_entries(folder).items() if "layers.1.mlp" in name}
        load_weights(parameters, match(parameters, entries, "here"), progress=False)
        parameters.settle()
        columns = share.of(96, "columns")
        return up(x), down(wide[:, columns.start : columns.stop].contiguous())

    whole_up, whole_down = products(Share())
    ranks = [products(Share(rank, 2)) for rank in (0, 1)]
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    gates, ups = zip(*(up.chunk(2, dim=1) for up, _ in ranks), strict=True)
    torch.testing.assert_close(torch.cat((*gates, *ups), 1), whole_up, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(sum(down for _, down in ranks), whole_down, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("split", "part"), [("out", 2), ("in", 2), (None, 1)])
def test_only_the_bytes_of_a_share_are_read(
    split, part: int, tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    preadv = os.preadv

    def counted(file: int, buffers, at: int) -> int:
        counts.append(preadv(file, buffers, at))
        return counts[-1]

    monkeypatch.setattr(os, "preadv", counted)
    monkeypatch.setattr(reading, "LEAST_NBYTES", 64)
    folder = tiny_checkpoint("llama")
    parameters = Parameters(torch.float32, CPU, share=Share(1, 2))
    parameters.linear([("layers.0.mlp.down_proj", 64)], 96, split=split)
    entry = read_entries(folder)["model.layers.0.mlp.down_proj.weight"]
    load_weights(parameters, {"layers.0.mlp.down_proj.weight": entry}, progress=False)
    assert sum(counts) == entry.nbytes // part


@pytest.mark.parametrize(
    ("family", "size", "parts"),
    [
        ("llama", 3, ["layers.0.self_attn.q_proj: heads=4", "3 ranks", "tensor_parallel_size"]),
        ("llama-tied-mqa", 2, ["layers.0.self_attn.k_proj: KV heads=1", "2 ranks"]),
        ("olmo2", 2, ["layers.0.self_attn.q_norm", "normalizes all heads together"]),
        ("gpt2", 8, ["h.0.attn.c_attn: heads=4", "8 ranks"]),
    ],
)
def test_heads_that_do_not_divide_are_refused_by_name(
    family: str, size: int, parts: list[str], tiny_checkpoint: Checkpoint
) -> None:
    with pytest.raises(ModelLoadError) as error:
        load_rank(tiny_checkpoint(family), Share(0, size), torch.device("meta"))
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(("split", "said"), [("out", "outputs=97"), ("in", "inputs=63")])
def test_a_matrix_that_does_not_divide_is_refused_by_name(split, said: str) -> None:
    parameters = Parameters(torch.float32, torch.device("meta"), share=Share(0, 2))
    with pytest.raises(ModelLoadError, match=rf"mlp\.up_proj\.weight: {said}"):
        parameters.linear([("mlp.up_proj", 97)], 63, split=split)


def test_blocks_of_weights_that_cross_heads_are_refused_by_name() -> None:
    parameters = Parameters(torch.float32, torch.device("meta"))
    form = Fp8((128, 128), False, False, "weight_scale_inv", "here")
    with pytest.raises(ModelLoadError, match=r"attention\.wqkv\.weight_scale_inv .* one of its 4 heads into the next"):
        parameters.linear([("attention.wqkv", 64)] * 3, 64, groups=4, form=form)


def test_a_rank_takes_its_share_of_the_memory(tiny_checkpoint: Checkpoint) -> None:
    meta = torch.device("meta")
    whole, half = (load_rank(tiny_checkpoint("mistral"), Share(0, size), meta).nbytes for size in (1, 2))
    layers = 3 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96) * 4
    assert whole - half == layers // 2
