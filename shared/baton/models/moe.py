"""The feed-forward of a mixture of experts: a router, the experts, and what is shared by all tokens.

Checkpoints have a tensor for each expert, or one for all experts of a layer; both are loaded into the same stacks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from baton.kernels.moe_routing import Routing, route
from baton.models.dense import DENSE
from baton.models.fields import Fields
from baton.models.layers import MLP
from baton.models.linear import Experts, ExpertTensors, Stored, WeightForm
from baton.models.online import Online
from baton.models.parameters import Parameters, Piece, Split, Target
from baton.models.spec import MLPSpec, ModelSpec, MoESpec
from baton.models.step import Step


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """What a checkpoint calls a layer's mixture of experts, and its parts below that."""

    block: str = "mlp"
    router: str = "gate"
    score_bias: str = "gate.e_score_correction_bias"
    each: tuple[str, str, str] | None = (
        "gate_proj",
        "up_proj",
        "down_proj",
    )  # modules of experts.N; None: there are only stacks
    stacks: tuple[str, str] = ("experts.gate_up_proj", "experts.down_proj")
    transposed: bool = False  # stacks have [experts, inputs, outputs]
    interleaved: bool = False  # in a stack outputs of gate and up alternate; else the gate's come first
    shared: str = "shared_expert"
    shared_gate: str = "shared_expert_gate"


class MoE:
    """Each token's sum over the experts that its router chooses, and over the shared one."""

    def __init__(self, parameters: Parameters, model: ModelSpec, layer: int, names: ExpertNames) -> None:
        spec, size, name = model.layers[layer].mlp, model.hidden_size, f"layers.{layer}.{names.block}"
        assert isinstance(spec, MoESpec)
        self.routing = replace(spec.routing, scale=spec.routing.scale * model.residual_scale)
        self.router = parameters.linear(
            [(f"{name}.{names.router}", spec.num_experts)], size, bias=spec.router_bias, form=DENSE
        )
        self.score_bias = None
        if spec.score_bias:
            bias = f"{name}.{names.score_bias}"
            self.score_bias = parameters.tensor(bias, spec.num_experts, fill="zeros", dtype=torch.float32)
        self.experts = make_experts(parameters, spec, size, name, names)
        self.shared = self.shared_gate = None
        if spec.shared is not None:
            gate, up, down = (f"{name}.{names.shared}.{part}" for part in ("gate_proj", "up_proj", "down_proj"))
            self.shared = MLP(parameters, model, layer, [gate, up], down, spec.shared)
        if spec.shared_gate:
            self.shared_gate = parameters.linear([(f"{name}.{names.shared_gate}", 1)], size, form=DENSE)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        weights, chosen = route(self.router.in_fp32(x), self.routing, self.score_bias)
        y = self.experts(x, chosen, weights)
        if self.shared is None:
            return y
        shared = self.shared(x, step)
        if self.shared_gate is not None:
            shared = shared * self.shared_gate(x, step).sigmoid()
        return y + shared


def make_experts(parameters: Parameters, spec: MoESpec, hidden_size: int, name: str, names: ExpertNames) -> Experts:
    """Make the stacks of a layer's experts, and note which tensors of either layout go where.

    Raises:
        ModelLoadError: the ranks cannot have equal shares.
    """
    of_each = [f"{name}.experts.{{}}.{module}" for module in names.each or ()]
    up = Product(spec.num_experts, (spec.size, spec.size), hidden_size, "out", of_each[:2], f"{name}.{names.stacks[0]}")
    down = Product(spec.num_experts, (hidden_size,), spec.size, "in", of_each[2:], f"{name}.{names.stacks[1]}")
    form = parameters.form_of([module.format(0) for module in of_each] or [up.whole, down.whole])
    form = form.plain if isinstance(form, Online) else form  # experts are read as they are
    products = [_stack(parameters, form, product, names, spec.bias) for product in (up, down)]
    if of_each:
        # Whole stacks, where a checkpoint of experts apart was saved anew.
        alternatives = zip(*(expected for _, *expected in products), strict=True)
        each, whole = (frozenset[str]().union(*names) for names in alternatives)
        parameters.alternatives.append((each, whole))
    return parameters.experts(form, products[0][0], products[1][0], spec.gate)


@dataclass(frozen=True, slots=True)
class Product:
    """One of the two products of all experts."""

    num_experts: int
    sizes: tuple[int, ...]  # outputs of its modules, one after the other
    num_inputs: int
    split: Split
    each: Sequence[str]  # modules of an expert, `{}` for its number; empty: a checkpoint has whole stacks alone
    whole: str  # the stack of all experts


def _stack(
    parameters: Parameters, form: WeightForm, product: Product, names: ExpertNames, has_bias: bool
) -> tuple[ExpertTensors, set[str], set[str]]:
    """Make the memory of a product; returns it, and the names of either layout that go there."""
    tensors: dict[str, Tensor] = {}
    each, whole = set[str](), set[str]()
    stored = [list(form.stored(size, product.num_inputs)) for size in product.sizes]
    if has_bias:
        for of_module, size in zip(stored, product.sizes, strict=True):
            of_module.append(Stored("bias", (size,), out_dim=0, fill="zeros"))
    for modules in zip(*stored, strict=True):  # one tensor that the form stores, of each module
        first, dim = modules[0], modules[0].out_dim
        boxes = [parameters.box(product.whole, module, product.split) for module in modules]
        num_rows = [1 if dim is None else len(box[dim]) for box in boxes]
        rest = [len(lengths) for at, lengths in enumerate(boxes[0]) if at != dim]
        stack = parameters.new((product.num_experts, sum(num_rows), *rest), first.fill, first.kept or first.dtype)
        tensors[first.suffix] = stack
        places = [rows[:, 0] if dim is None else rows.movedim(1, 1 + dim) for rows in torch.split(stack, num_rows, 1)]
        each |= _expect_each(parameters, product, modules, boxes, places)
        if dim is not None:
            whole.add(_expect_whole(parameters, product, modules, boxes, places, names))
    return ExpertTensors(tensors, tensors.pop("bias", None)), each, whole


def _expect_each(
    parameters: Parameters,
    product: Product,
    modules: Sequence[Stored],
    boxes: Sequence[list[range]],
    places: Sequence[Tensor],
) -> set[str]:
    expected = set()
    for module, stored, box, place in zip(product.each, modules, boxes, places, strict=bool(product.each)):
        for expert in range(product.num_experts):
            name = f"{module.format(expert)}.{stored.suffix}"
            target = parameters.targets[name] = Target.of(stored)
            target.pieces.append(Piece(place[expert], tuple(box)))
            expected.add(name)
    return expected


def _expect_whole(
    parameters: Parameters,
    product: Product,
    modules: Sequence[Stored],
    boxes: Sequence[list[range]],
    places: Sequence[Tensor],
    names: ExpertNames,
) -> str:
    """Expect one tensor of all experts, [experts, *as the form stores it], where all modules lie in its outputs."""
    first, dim = modules[0], modules[0].out_dim
    assert dim is not None
    shape = [product.num_experts, *first.shape]
    shape[1 + dim] = sum(stored.shape[dim] for stored in modules)
    is_weight = first.suffix == "weight"
    target = Target(tuple(shape), first.dtype)
    begin = 0
    for at, (stored, box, place) in enumerate(zip(modules, boxes, places, strict=True)):
        box = [range(product.num_experts), *box]
        own = box[1 + dim]
        if names.interleaved:
            step = len(modules)
            box[1 + dim] = range(at + step * own.start, at + step * own.stop, step)
        else:
            box[1 + dim] = range(begin + own.start, begin + own.stop)
        begin += stored.shape[dim]
        if is_weight and names.transposed:
            box, place = [box[0], box[2], box[1]], place.transpose(1, 2)
        target.pieces.append(Piece(place, tuple(box)))
    if is_weight and names.transposed:
        target.shape = (shape[0], shape[2], shape[1])
    name = product.whole if is_weight else f"{product.whole}_{first.suffix}"
    parameters.targets[name] = target
    return name


def read_moe(fields: Fields, routing: Routing, size: int, **own: Any) -> MoESpec:
    """Read the experts, whose number has one of two names; `own`: fields of the spec that the family sets.

    Raises:
        ModelLoadError: a token chooses more experts than there are, or of groups that do not divide them.
    """
    num_experts = fields.integer("num_experts", "num_local_experts", "n_routed_experts")
    if routing.num_chosen > num_experts:
        limit = f"it must be at most the number of experts, {num_experts}"
        raise fields.refusal("num_experts_per_tok", routing.num_chosen, limit)
    if num_experts % routing.num_groups:
        raise fields.refusal("n_group", routing.num_groups, f"it must divide the number of experts, {num_experts}")
    fields.choice("hidden_act", allowed=("silu", "swish"), default="silu")
    return MoESpec(num_experts, routing, size, **own)


def sparse_layers(
    spec: ModelSpec, mlp: MLPSpec | MoESpec, is_sparse: Callable[[int], bool] = lambda layer: True
) -> ModelSpec:
    """Give the layers that the family makes sparse a mixture of experts."""
    layers = (replace(each, mlp=mlp) if is_sparse(at) else each for at, each in enumerate(spec.layers))
    return replace(spec, layers=tuple(layers))
