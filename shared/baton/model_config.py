"""A model's config.json as it is to be read: with what an operator puts over it (`--hf-overrides`). No torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baton.model_folder import read_json


def read_config(folder: Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read config.json of a folder.

    Args:
        overrides: values over those of the file; of nested configs (`text_config` and the like), over theirs.

    Raises:
        ModelLoadError: it cannot be read, or holds no object.
    """
    config = read_json(folder / "config.json")
    return with_overrides(config, overrides) if overrides else config


def with_overrides(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Put values over a config's; those of rotary positions by either of the names that transformers has had for them."""
    merged = copy.deepcopy(dict(config))
    for name, value in overrides.items():
        inner = merged.get(name)
        if name.endswith("_config") and isinstance(inner, dict) and isinstance(value, Mapping):
            merged[name] = with_overrides(inner, value)
        else:
            merged[name] = copy.deepcopy(value)
    rope = merged.get("rope_parameters")
    if isinstance(rope, dict) and "rope_parameters" not in overrides:
        if isinstance(scaling := overrides.get("rope_scaling"), Mapping):
            theta = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
            rope = merged["rope_parameters"] = {**theta, **scaling}
        if "rope_theta" in overrides:
            rope["rope_theta"] = overrides["rope_theta"]
    return merged
