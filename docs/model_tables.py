"""What is served: the families of models and the forms of their weights, as the code registers them."""

from __future__ import annotations

import inspect

from docs.markdown import rows

from baton.models.families import FAMILIES
from baton.models.weight_forms import SERVED


def models_table() -> str:
    """Return each family with the names that its config.json has, and what sets it apart."""
    lines = []
    for family in FAMILIES:
        module = inspect.getmodule(family.read)
        about = (inspect.getdoc(module) or "").split("\n")[0].rstrip(".")
        names = ", ".join(f"`{name}`" for name in family.architectures)
        lines.append((f"`{family.name}`", names, about))
    return rows(("`model_type`", "`architectures`", ""), lines)


def quantized_table() -> str:
    """Return what is served of each method of quantization."""
    lines = [(f"`{method}`", what, bits, on_gpu) for method, what, bits, on_gpu in SERVED]
    return rows(("`quant_method`", "what", "bits", "on a GPU"), lines)
