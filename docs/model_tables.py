"""What is served: the families of models, as the code registers them."""

from __future__ import annotations

import inspect

from docs.markdown import rows

from baton.models.families import FAMILIES


def models_table() -> str:
    """Return each family with the names that its config.json has, and what sets it apart."""
    lines = []
    for family in FAMILIES:
        module = inspect.getmodule(family.read)
        about = (inspect.getdoc(module) or "").split("\n")[0].rstrip(".")
        names = ", ".join(f"`{name}`" for name in family.architectures)
        lines.append((f"`{family.name}`", names, about))
    return rows(("`model_type`", "`architectures`", ""), lines)
