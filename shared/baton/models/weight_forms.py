"""Which form the weights of a checkpoint have: by what its config.json calls the quantization, and by what is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from baton.errors import ModelLoadError
from baton.models import awq, bitsandbytes, compressed_tensors, fp8, gptq, mxfp4, online
from baton.models.fields import DTYPES, Fields
from baton.models.linear import ByModule, WeightForm
from baton.models.module_rules import QuantizedFields

# quant_method -> its form, made of the whole quantization_config
QUANTIZED: dict[str, Callable[[QuantizedFields], WeightForm | ByModule]] = {
    "awq": awq.read,
    "bitsandbytes": bitsandbytes.read,
    "compressed-tensors": compressed_tensors.read,
    "fp8": fp8.read,
    "gptq": gptq.read,
    "mxfp4": mxfp4.read,
}
KEPT, KEPT_FP8, WRITTEN_OUT = "kept", "kept; beyond 64 rows activations have 8 bits too", "written out"
SERVED: tuple[tuple[str, str, str, str], ...] = (
    ("gptq", "any group or a whole row, symmetric or not, `desc_act`, versions 1 and 2, `dynamic`", "2, 3, 4, 8", KEPT),
    ("awq", "`version: gemm`, with or without zeros", "4", KEPT),
    ("compressed-tensors", "`pack-quantized`: a scale a group or output, `actorder`", "4, 8", KEPT),
    ("compressed-tensors", "`int-quantized`: a scale an output or tensor; activations stay in 16 bits", "8", KEPT),
    ("compressed-tensors", "`float-quantized`: a scale a tensor, output or block", "8", KEPT_FP8),
    ("fp8", "e4m3: a scale a tensor, or `weight_block_size`; `static` and `dynamic`", "8", KEPT_FP8),
    ("bitsandbytes", "NF4 and FP4, doubly quantized or not", "4", WRITTEN_OUT),
    ("bitsandbytes", "int8", "8", KEPT),
    ("mxfp4", "the experts of gpt-oss", "4", WRITTEN_OUT),
)
"""For the documentation: a method, what of it is served, its bits, and what becomes of a weight on a GPU; on a CPU it is written
out."""
SAME = {"gptq_marlin": "gptq", "awq_marlin": "awq"}
"""vLLM's names for the kernels of a method; which kernel runs is chosen here."""
_SECTIONS = ("quantization_config", "compression_config")


def read_weight_form(
    fields: Fields, plain: WeightForm, quantization: str | None = None
) -> WeightForm | ByModule | None:
    """Find the form of the weights; None: they are not quantized.

    Args:
        plain: the family's form of weights that are not.
        quantization: what is asked for: the method that the checkpoint has, or one of `online.METHODS`.

    Raises:
        ModelLoadError: they are quantized in a way that Baton does not load, or not as is asked for.
    """
    asked = SAME.get(quantization or "", quantization)
    for name in _SECTIONS:
        value = fields.raw.get(name)
        if value:
            return _of_checkpoint(fields, plain, name, value, asked)
    if asked is None:
        return None
    if asked not in online.METHODS:
        known = ", ".join((*QUANTIZED, *SAME))
        way_out = (
            f"the checkpoint is not quantized. Leave it out, or give one of {', '.join(online.METHODS)} to quantize "
            f"while loading."
            if asked in QUANTIZED
            else f"it is none of {', '.join(online.METHODS)} (made while loading), {known} (what a checkpoint has)."
        )
        raise ModelLoadError(f"{fields.source}: quantization={quantization!r}: {way_out}")
    return online.Online(plain, asked, DTYPES[fields.dtype()])


def _of_checkpoint(
    fields: Fields, plain: WeightForm, section: str, value: object, asked: str | None
) -> WeightForm | ByModule:
    method = value.get("quant_method", "unnamed") if isinstance(value, Mapping) else value
    method = SAME.get(method, method) if isinstance(method, str) else method
    if not isinstance(value, Mapping) or not isinstance(method, str) or method not in QUANTIZED:
        raise ModelLoadError(
            f"{fields.source}: {section} says quant_method={method!r}; Baton loads unquantized weights "
            f"({', '.join(DTYPES)}) and {', '.join(QUANTIZED)}. Take the unquantized checkpoint of this model, with "
            f"--quantization {', '.join(online.METHODS)} if it is to be smaller."
        )
    if asked not in (None, method):
        raise ModelLoadError(
            f"{fields.source}: quantization={asked!r} is asked for, and the checkpoint is quantized by {method}. Leave it "
            "out, or take the unquantized checkpoint."
        )
    raw: dict[str, Any] = dict(value)
    return QUANTIZED[method](QuantizedFields(Fields(raw, f"{fields.source}: {section}"), plain, DTYPES[fields.dtype()]))
