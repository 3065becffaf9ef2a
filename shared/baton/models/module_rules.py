"""What a quantization_config says of single modules: which are kept as they were trained, and which have a form of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from baton.models.fields import Fields
from baton.models.linear import ByModule, WeightForm
from baton.models.weights import PREFIXES


@dataclass(frozen=True, slots=True)
class QuantizedFields:
    """A quantization_config, with what of config.json its reader needs."""

    fields: Fields
    plain: WeightForm  # of modules that are not quantized
    dtype: torch.dtype  # the checkpoint's, which scales are kept in

    def names(self, module: str) -> Iterator[str]:
        """Yield what a module may be called in a checkpoint."""
        yield module
        for prefix in PREFIXES:
            yield prefix + module

    def unless(self, kept: object, form: WeightForm, *, anywhere: bool = False) -> WeightForm | ByModule:
        """Make the form of all modules but those of a list, by whole name, by the name's beginning or end, or by `re:`.

        anywhere: a name counts wherever it stands in the module's.
        """
        patterns = self.patterns("modules_to_not_convert", kept)
        if not patterns:
            return form

        def form_of(module: str) -> WeightForm:
            for pattern in patterns:
                if self.matches(module, pattern) or (anywhere and pattern in f"model.{module}"):
                    return self.plain
            return form

        return ByModule(form_of, self.fields.source)

    def patterns(self, field: str, value: object) -> list[str]:
        """Check a list of names.

        Raises:
            ModelLoadError: it is none.
        """
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.fields.refusal(field, value, "it must be a list of names of modules")
        for pattern in value:
            if pattern.startswith("re:"):
                self.compiled(field, pattern[3:])
        return value

    def compiled(self, field: str, pattern: object) -> re.Pattern[str]:
        """Compile a pattern of names.

        Raises:
            ModelLoadError: it is none.
        """
        try:
            return re.compile(str(pattern))
        except re.error as error:
            raise self.fields.refusal(field, pattern, f"as a regular expression: {error}") from None

    def matches(self, module: str, pattern: str) -> bool:
        """Whether a pattern names a module: itself, a part that it lies in, its last parts, or a `re:` of it."""
        if pattern.startswith("re:"):
            return any(re.match(pattern[3:], name) for name in self.names(module))
        return any(
            name == pattern or name.startswith(f"{pattern}.") or name.endswith(f".{pattern}")
            for name in self.names(module)
        )
