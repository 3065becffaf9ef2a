"""Typed reading of a checkpoint's JSON: a wrong value is named before it becomes a wrong shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from baton.errors import ModelLoadError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FIX_CONFIG = "Correct config.json, or fetch the checkpoint again."


class Fields:
    """The fields of config.json, each read with its type and limits; null means absent."""

    def __init__(self, raw: Mapping[str, Any], source: str, names: Mapping[str, str] | None = None) -> None:
        self.raw = raw
        self.source = source
        self._names = names or {}  # what config.json calls fields that `known_as` renamed

    def with_defaults(self, **defaults: Any) -> Fields:
        """The same, with values for the fields that are absent."""
        absent = {name: value for name, value in defaults.items() if self.raw.get(name) is None}
        return Fields({**self.raw, **absent}, self.source, self._names)

    def known_as(self, **names: str) -> Fields:
        """The same, with fields under the names that most families have: new name -> the family's own."""
        renamed = {new: self.raw[old] for new, old in names.items() if self.raw.get(old) is not None}
        return Fields({**self.raw, **renamed}, self.source, {new: names[new] for new in renamed})

    def refusal(self, field: str, value: object, limit: str, way_out: str = FIX_CONFIG) -> ModelLoadError:
        """Make the one error for a value that cannot be."""
        field, shown = self._names.get(field, field), repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return ModelLoadError(f"{self.source}: config.json has {field}={shown}; {limit}. {way_out}")

    def integer(self, *names: str, default: int | None = None, minimum: int = 1) -> int:
        """Read the first of the names that is there; without default it must be there."""
        for name in names:
            value = self.optional_integer(name, minimum)
            if value is not None:
                return value
        if default is None:
            raise ModelLoadError(f"{self.source}: config.json lacks {names[0]}. {FIX_CONFIG}")
        return default

    def optional_integer(self, name: str, minimum: int = 1) -> int | None:
        value = self.raw.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value < 2**31:
            raise self.refusal(name, value, f"it must be a whole number of at least {minimum}")
        return value

    def number(self, name: str, default: float) -> float:
        """Read a positive, finite number."""
        value = self.optional_number(name)
        return default if value is None else value

    def optional_number(self, name: str) -> float | None:
        value = self.raw.get(name)
        return None if value is None else self.as_number(name, value)

    def as_number(self, name: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.refusal(name, value, "it must be a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.raw.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refusal(name, value, "it must be true or false")
        return value

    def choice(self, *names: str, allowed: tuple[str, ...], default: str) -> str:
        for name in names:
            value = self.raw.get(name)
            if value is not None:
                if value not in allowed:
                    raise self.refusal(name, value, f"Baton runs this family with {', '.join(allowed)}")
                return str(value)
        return default

    def must_be_off(self, name: str) -> None:
        if self.raw.get(name):
            raise self.refusal(name, self.raw[name], "Baton does not run this variant", "Take a checkpoint without it.")

    def dtype(self) -> str:
        value = self.raw.get("dtype") or self.raw.get("torch_dtype") or "float32"
        name = str(value).removeprefix("torch.")
        if name not in DTYPES:
            raise self.refusal(
                "dtype", value, f"Baton loads {', '.join(DTYPES)}", "Take another checkpoint of this model."
            )
        return name
