"""What compressed-tensors writes (llm-compressor's checkpoints): groups of modules, each with a scheme of its own.

Served: whole numbers of 4 and 8 bits packed into words (`pack-quantized`; symmetric or not, a scale a group or an output),
eight-bit whole numbers (`int-quantized`, `naive-quantized`) and e4m3 (`float-quantized`), alone or with activations of eight bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baton.errors import ModelLoadError
from baton.models.dummy_fills import InOrder, ScaleFill, random_bits, repeated, spread_of
from baton.models.fields import Fields
from baton.models.fp8 import Fp8, block_of
from baton.models.integer_codes import as_int8, order_of_groups, unpack, without_middle
from baton.models.linear import ByModule, Stored, WeightForm
from baton.models.module_rules import QuantizedFields
from baton.models.weight_only import Layout, Values, WeightOnlyForm, tensors_nbytes

FORMATS = ("pack-quantized", "int-quantized", "naive-quantized", "float-quantized", "mixed-precision", "dense")
ANOTHER = "Take a checkpoint of another scheme, or the one of 16 bits with --quantization."


@dataclass(frozen=True, slots=True)
class PackedInts(WeightOnlyForm):
    """Codes packed into words along the inputs, zeros along the outputs."""

    bits: int
    group: int | None  # inputs; None: all
    is_symmetric: bool
    is_ordered: bool
    scale_dtype: torch.dtype
    source: str

    def stored(self, num_outputs: int, num_inputs: int) -> Sequence[Stored]:
        group, in_word = self.group or num_inputs, 32 // self.bits
        if num_inputs % group or num_inputs % in_word:
            raise ModelLoadError(
                f"{self.source}: group_size={group} and words of {in_word} codes must divide the {num_inputs} inputs of a "
                f"layer. {ANOTHER}"
            )
        groups = num_inputs // group
        in_dim = 1 if groups > 1 and not self.is_ordered else None
        fill = ScaleFill(spread_of(self.bits))
        found = [
            Stored("weight_packed", (num_outputs, num_inputs // in_word), 0, 1, torch.int32, random_bits),
            Stored("weight_scale", (num_outputs, groups), 0, in_dim, fill=fill, kept=self.scale_dtype),
            Stored("weight_shape", (2,), dtype=torch.int64, fill="zeros", optional=True),
        ]
        if not self.is_symmetric:
            if num_outputs % in_word:
                raise ModelLoadError(
                    f"{self.source}: words of {in_word} zeros do not divide the {num_outputs} outputs of a layer. {ANOTHER}"
                )
            middle = repeated(1 << self.bits - 1, self.bits)
            found.append(Stored("weight_zero_point", (num_outputs // in_word, groups), 0, in_dim, torch.int32, middle))
        if self.is_ordered:
            found.append(Stored("weight_g_idx", (num_inputs,), None, 0, torch.int32, InOrder(group), optional=True))
        return found

    def layout(self, tensors: Mapping[str, Tensor]) -> Layout:
        packed, scales = tensors["weight_packed"], tensors["weight_scale"]
        return Layout(
            len(packed),
            packed.shape[1] * (32 // self.bits),
            scales.shape[1],
            tensors_nbytes(*tensors.values()),
            torch.int8 if self.bits == 8 else torch.uint8,
            self.scale_dtype.itemsize + (not self.is_symmetric),
        )

    def values(self, tensors: Mapping[str, Tensor], sizes: Sequence[int]) -> Values:
        codes, scales = unpack(tensors["weight_packed"], self.bits), tensors["weight_scale"]
        zeros = order = None
        if not self.is_symmetric:
            zeros = unpack(tensors["weight_zero_point"].t(), self.bits).t()
        if self.is_ordered:
            g_idx = tensors["weight_g_idx"]
            if bool((g_idx >= 0).any()):  # all of them -1: written without an order
                order = order_of_groups(g_idx, codes.shape[1] // scales.shape[1], self.source)
            codes = codes if order is None else codes[:, order]
        if self.bits == 8:
            return Values(as_int8(codes), scales, None if zeros is None else without_middle(as_int8(zeros), 0), order)
        return Values(codes, scales, None if zeros is None else without_middle(zeros, 8), order)


@dataclass(frozen=True, slots=True)
class Int8Weight(WeightOnlyForm):
    """Whole numbers of eight bits as they are, one scale an output or a module."""

    per_output: bool
    is_symmetric: bool
    x_scales: str  # of activations: "none", "dynamic" or "static"
    scale_dtype: torch.dtype
    source: str

    def stored(self, num_outputs: int, num_inputs: int) -> Sequence[Stored]:
        shape, out_dim = ((num_outputs, 1), 0) if self.per_output else ((), None)
        fill = ScaleFill(spread_of(8))
        found = [
            Stored("weight", (num_outputs, num_inputs), 0, 1, torch.int8, random_bits),
            Stored("weight_scale", shape, out_dim, fill=fill, kept=self.scale_dtype),
        ]
        found.append(
            Stored(
                "weight_zero_point",
                shape,
                out_dim,
                dtype=torch.int8,
                fill="zeros",
                kept=torch.int8,
                optional=self.is_symmetric,
            )
        )
        if self.x_scales == "static":
            found.append(Stored("input_scale", (), fill=ScaleFill(0.5), kept=torch.float32))
            found.append(Stored("input_zero_point", (), dtype=torch.int8, fill="zeros", kept=torch.int8, optional=True))
        return found

    def layout(self, tensors: Mapping[str, Tensor]) -> Layout:
        weight = tensors["weight"]
        return Layout(
            len(weight),
            weight.shape[1],
            1,
            tensors_nbytes(*tensors.values()),
            torch.int8,
            self.scale_dtype.itemsize + (not self.is_symmetric),
        )

    def values(self, tensors: Mapping[str, Tensor], sizes: Sequence[int]) -> Values:
        weight, scale, zeros = tensors["weight"], tensors["weight_scale"], tensors["weight_zero_point"]
        if not self.per_output:
            of_modules = torch.tensor(sizes, device=scale.device)
            scale, zeros = (
                of.view(-1, 1).repeat_interleave(of_modules, 0, output_size=len(weight)) for of in (scale, zeros)
            )
        return Values(weight, scale, without_middle(zeros, 0))


def read(described: QuantizedFields) -> WeightForm | ByModule:
    """Read quantization_config of `compressed-tensors`.

    Raises:
        ModelLoadError: a scheme that is not served.
    """
    fields = described.fields
    groups = fields.raw.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise fields.refusal("config_groups", groups, "it must map names to schemes")
    for name, scheme in groups.items():
        if not isinstance(scheme, Mapping):
            raise fields.refusal(f"config_groups.{name}", scheme, "it must map parts to how they are quantized")
    sparsity = fields.raw.get("sparsity_config")
    if sparsity and (not isinstance(sparsity, Mapping) or sparsity.get("format") not in (None, "dense")):
        raise fields.refusal("sparsity_config", sparsity, "sparse weights are not served", ANOTHER)
    cached = fields.raw.get("kv_cache_scheme")
    if cached:
        raise fields.refusal("kv_cache_scheme", cached, "KV of eight bits is not served", ANOTHER)
    ignored = described.patterns("ignore", fields.raw.get("ignore"))
    schemes = [
        (described.patterns("targets", scheme.get("targets")), _form(described, name, scheme))
        for name, scheme in groups.items()
    ]

    def form_of(module: str) -> WeightForm:
        if any(described.matches(module, pattern) for pattern in ignored):
            return described.plain
        named = [form for targets, form in schemes if any(described.matches(module, each) for each in targets)]
        of_class = [form for targets, form in schemes if "Linear" in targets]
        return next(iter(named + of_class), described.plain)

    return ByModule(form_of, fields.source)


def _form(described: QuantizedFields, name: str, scheme: Mapping[str, object]) -> WeightForm:
    """Make the form of one scheme."""
    source = f"{described.fields.source}.config_groups.{name}"
    given = scheme.get("weights")
    if not isinstance(given, Mapping):
        raise Fields(scheme, source).refusal("weights", given, "it must say how weights are quantized", ANOTHER)
    weights, x = Fields(given, source), scheme.get("input_activations")
    kind = scheme.get("format") or described.fields.raw.get("format") or "dense"
    if kind not in FORMATS:
        raise described.fields.refusal("format", kind, f"Baton loads {', '.join(FORMATS[:4])}", ANOTHER)
    scale_of = weights.choice(
        "strategy",
        allowed=("tensor", "channel", "group", "block"),
        default="group" if given.get("group_size") else "tensor",
    )
    bits, x_scales = weights.integer("num_bits"), _activations(x, source, given)
    if weights.choice("type", allowed=("int", "float"), default="int") == "float":
        if bits != 8 or scale_of == "group":
            raise weights.refusal(
                "num_bits", bits, "of floats 8 are served, a scale a tensor, channel or block", ANOTHER
            )
        block = block_of(described, "block_structure", given.get("block_structure")) if scale_of == "block" else None
        return Fp8(block, scale_of == "channel", x_scales == "static", "weight_scale", source)
    symmetric = weights.flag("symmetric", True)
    if kind == "pack-quantized":
        if bits not in (4, 8) or x_scales != "none" or scale_of not in ("group", "channel"):
            raise weights.refusal(
                "num_bits", bits, "packed words are served with 4 or 8, a scale a group or channel", ANOTHER
            )
        group = weights.integer("group_size") if scale_of == "group" else None
        ordered = given.get("actorder") in ("group", "dynamic", True)
        return PackedInts(bits, group, symmetric, ordered, described.dtype, source)
    if bits != 8 or scale_of not in ("tensor", "channel"):
        raise weights.refusal("num_bits", bits, "whole numbers are served with 8, a scale a tensor or channel", ANOTHER)
    return Int8Weight(scale_of == "channel", symmetric, x_scales, described.dtype, source)


def _activations(x: object, source: str, weights: Mapping[str, object]) -> str:
    """Say how activations are scaled."""
    if not x:
        return "none"
    if not isinstance(x, Mapping):
        raise Fields(weights, source).refusal(
            "input_activations", x, "it must say how activations are quantized", ANOTHER
        )
    fields = Fields(x, f"{source}.input_activations")
    if fields.integer("num_bits") != 8 or fields.choice("type", allowed=("int", "float"), default="int") != weights.get(
        "type", "int"
    ):
        raise fields.refusal(
            "num_bits", x.get("num_bits"), "activations are served with 8, of the weights' type", ANOTHER
        )
    return "dynamic" if x.get("dynamic") in (True, "local") else "static"
