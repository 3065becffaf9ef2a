"""Time a mixture of experts at Mixtral 8x7B's and Qwen3-30B-A3B's shapes, beside dense products of as many operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from baton.bench.kernels.measure import Row, time_peers, time_us
from baton.kernels.launch_table import HOPPER_MOE, MoEProduct, MoERow, MoETile
from baton.kernels.moe import invariant_moe, moe, moe_reference
from baton.kernels.moe_order import order_by_expert
from baton.kernels.moe_routing import Routing, route
from baton.kernels.moe_rows import moe_row
from baton.kernels.moe_tiles import moe_tiles
from baton.kernels.moe_weights import SILU, ExpertWeights

MEMORY_BOUND = 128
"""Tokens up to which reading the experts is the floor, for both models."""
LARGEST_ERROR = 1e-2
"""Of bf16 results, by the norm of the difference."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The experts of one layer of a model."""

    name: str
    num_experts: int
    num_chosen: int
    hidden: int
    inner: int

    def make(self) -> ExpertWeights:
        up, down = (self.num_experts, 2 * self.inner, self.hidden), (self.num_experts, self.hidden, self.inner)
        return ExpertWeights(_random(*up).mul_(self.hidden**-0.5), _random(*down).mul_(self.inner**-0.5))

    def inputs(self, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """Make x, and what a router of random logits chooses."""
        logits = torch.randn(num_tokens, self.num_experts, device="cuda")
        weights, chosen = route(logits, Routing(self.num_chosen, renormalized=True))
        return _random(num_tokens, self.hidden), chosen, weights


SHAPES = (Shape("Mixtral 8x7B", 8, 2, 4096, 14336), Shape("Qwen3-30B-A3B", 128, 8, 2048, 768))
TOKENS = (1, 8, 32, 128, 4096)


def rows() -> Iterator[Row]:
    """Measure both models' layers at each number of tokens, each checked against the reference; then what goes before."""
    for shape in SHAPES:
        experts = shape.make()
        for num_tokens in TOKENS:
            yield _layer(shape, experts, num_tokens)
        del experts
        torch.cuda.empty_cache()
    for shape in SHAPES:
        for num_tokens in (1, 128, 4096):
            yield from _choice(shape, num_tokens)


def _layer(shape: Shape, experts: ExpertWeights, num_tokens: int) -> Row:
    sets = [shape.inputs(num_tokens) for _ in range(8 if num_tokens <= MEMORY_BOUND else 2)]
    _check(sets[0], experts)
    us = time_us(partial(_compute, experts), sets)
    touched = _touched(sets)
    num_pairs = num_tokens * shape.num_chosen
    operations = 2 * 3 * num_pairs * shape.hidden * shape.inner
    name = f"{num_tokens} x {shape.name}, {touched:.0f} experts"
    if num_tokens <= MEMORY_BOUND:
        nbytes = 2 * touched * 3 * shape.hidden * shape.inner
        return Row("moe", name, us, nbytes / us / 1e3, "GB/s")
    return Row("moe", name, us, operations / us / 1e6, "TFLOP/s", _peers(shape, experts, num_pairs))


def _compute(experts: ExpertWeights, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return moe(*inputs, experts)


def _touched(sets: Sequence[tuple[Tensor, Tensor, Tensor]]) -> float:
    """Count the experts that a step touches, on average."""
    return sum(len(torch.unique(chosen)) for _, chosen, _ in sets) / len(sets)


def _check(inputs: tuple[Tensor, Tensor, Tensor], experts: ExpertWeights) -> None:
    expected = moe_reference(*inputs, experts).double()
    for name, op in (("moe", moe), ("invariant_moe", invariant_moe)):
        error = float((op(*inputs, experts).double() - expected).norm() / expected.norm())
        print(f"{name}, {len(inputs[0])} tokens: off the reference by {error:.1e}", flush=True)
        if not error < LARGEST_ERROR:
            raise ArithmeticError(f"{name} of {len(inputs[0])} tokens is off the reference by {error:.3g}")


def _peers(shape: Shape, experts: ExpertWeights, num_pairs: int) -> dict[str, float]:
    """Time the two products alone: as if all tokens had one expert, and grouped by torch."""
    pairs, gated = _random(num_pairs, shape.hidden), _random(num_pairs, shape.inner)
    ends = torch.linspace(0, num_pairs, shape.num_experts + 1, device="cuda")[1:].to(torch.int32)

    def dense(_: None) -> None:
        torch.mm(pairs, experts.up[0].t())
        torch.mm(gated, experts.down[0].t())

    def grouped(_: None) -> None:
        torch._grouped_mm(pairs, experts.up.transpose(1, 2), offs=ends)
        torch._grouped_mm(gated, experts.down.transpose(1, 2), offs=ends)

    return time_peers(
        {"dense cuBLAS": partial(time_us, dense, [None]), "grouped_mm": partial(time_us, grouped, [None])}
    )


def _choice(shape: Shape, num_tokens: int) -> Iterator[Row]:
    logits = [torch.randn(num_tokens, shape.num_experts, device="cuda") for _ in range(4)]
    routing = Routing(shape.num_chosen, renormalized=True)
    name = f"{num_tokens} x {shape.num_experts}, {shape.num_chosen} chosen"
    us = time_us(lambda one: route(one, routing), logits)
    yield Row("route", name, us, logits[0].nbytes / us / 1e3, "GB/s")
    chosen = [route(one, routing)[1] for one in logits]
    us = time_us(lambda one: order_by_expert(one, shape.num_experts, 128), chosen)
    yield Row("order_by_expert", name, us, 2 * chosen[0].nbytes / us / 1e3, "GB/s")


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


# ------------------------------------------------------------------------------------------------------------
# What may be a device's entry in the launch table

_LARGE = (
    HOPPER_MOE.large,
    MoETile(128, 8, MoEProduct(128, 64, 8, 3), MoEProduct(256, 64, 8, 3)),
    MoETile(128, 8, MoEProduct(64, 64, 8, 4), MoEProduct(128, 64, 8, 4)),
    MoETile(128, 8, MoEProduct(64, 64, 4, 4), MoEProduct(128, 64, 4, 4)),
    MoETile(64, 8, MoEProduct(128, 64, 4, 4), MoEProduct(256, 64, 4, 4)),
    MoETile(64, 8, MoEProduct(128, 64, 8, 4), MoEProduct(256, 64, 8, 4)),
    MoETile(64, 16, MoEProduct(64, 64, 4, 4), MoEProduct(128, 64, 4, 4)),
    MoETile(128, 4, MoEProduct(128, 64, 8, 4), MoEProduct(256, 64, 8, 4)),
    MoETile(128, 16, MoEProduct(128, 64, 8, 4), MoEProduct(256, 64, 8, 4)),
)
_FEW = (
    HOPPER_MOE.narrow,
    HOPPER_MOE.middle,
    MoETile(16, 1, MoEProduct(32, 256, 4, 3), MoEProduct(64, 256, 4, 3)),
    MoETile(16, 1, MoEProduct(16, 256, 2, 4), MoEProduct(32, 256, 2, 4)),
    MoETile(16, 1, MoEProduct(16, 512, 4, 3), MoEProduct(16, 512, 4, 3)),
    MoETile(16, 1, MoEProduct(64, 128, 4, 4), MoEProduct(128, 128, 4, 4)),
    MoETile(16, 1, MoEProduct(32, 128, 4, 6), MoEProduct(64, 128, 4, 6)),
    MoETile(16, 1, MoEProduct(64, 64, 4, 5), MoEProduct(64, 64, 4, 5)),
    MoETile(32, 1, MoEProduct(32, 128, 4, 4), MoEProduct(64, 128, 4, 4)),
    MoETile(64, 1, MoEProduct(32, 128, 4, 4), MoEProduct(64, 128, 4, 4)),
    MoETile(64, 1, MoEProduct(64, 64, 4, 5), MoEProduct(64, 128, 4, 4)),
)
_ROW = (
    HOPPER_MOE.row,
    *(MoERow(*each) for each in ((1, 2, 2048, 4), (2, 2, 2048, 4), (4, 4, 1024, 4), (4, 8, 1024, 4), (2, 4, 1024, 4))),
    *(MoERow(*each) for each in ((2, 4, 2048, 8), (4, 8, 2048, 8), (1, 2, 1024, 2), (2, 4, 1024, 2), (1, 4, 1024, 4))),
)


def sweep() -> Iterator[tuple[str, float, str, object]]:
    """Time other launches of both models' layers."""
    for shape in SHAPES:
        experts = shape.make()
        for num_tokens in TOKENS:
            sets = [shape.inputs(num_tokens) for _ in range(8 if num_tokens <= MEMORY_BOUND else 2)]
            nbytes = 6 * shape.hidden * shape.inner * _touched(sets)
            operations = 6 * num_tokens * shape.num_chosen * shape.hidden * shape.inner
            name = f"moe, {num_tokens} x {shape.name}"
            for launch in _ROW if num_tokens == 1 else _FEW if num_tokens <= MEMORY_BOUND else _LARGE:
                try:
                    us = time_us(partial(_with, launch, experts), sets)
                except Exception as error:  # a tile that does not fit the device
                    print(f"{name}: {launch} was left out: {type(error).__name__}: {str(error)[:100]}", flush=True)
                    continue
                if num_tokens <= MEMORY_BOUND:
                    yield name, nbytes / us / 1e3, "GB/s", launch
                else:
                    yield name, operations / us / 1e6, "TFLOP/s", launch


def _with(launch: MoERow | MoETile, experts: ExpertWeights, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    if isinstance(launch, MoERow):
        return moe_row(*inputs, experts, SILU, launch)
    return moe_tiles(*inputs, experts, SILU, launch)
