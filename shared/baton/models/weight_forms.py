"""Which form the weights of a checkpoint have, by what its config.json calls the quantization."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from baton.errors import ModelLoadError
from baton.models.fields import DTYPES, Fields
from baton.models.linear import WeightForm

# quant_method -> its form, made of the whole quantization_config
QUANTIZED: dict[str, Callable[[Mapping[str, Any]], WeightForm]] = {}


def read_weight_form(fields: Fields) -> WeightForm | None:
    """Find the form of quantized weights; None: they are not quantized.

    Raises:
        ModelLoadError: they are quantized in a way that Baton does not load.
    """
    for name in ("quantization_config", "compression_config"):
        value = fields.raw.get(name)
        if not value:
            continue
        method = value.get("quant_method", "unnamed") if isinstance(value, Mapping) else value
        if isinstance(value, Mapping) and method in QUANTIZED:
            return QUANTIZED[method](value)
        raise ModelLoadError(
            f"{fields.source}: {name} says quant_method={method!r}; Baton loads unquantized weights "
            f"({', '.join((*DTYPES, *QUANTIZED))}). Take the unquantized checkpoint of this model."
        )
    return None
