"""How a model is sampled where a request does not say: its generation_config.json, and what an operator puts over it. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baton.errors import ConfigError, InvalidRequest
from baton.protocol import SamplingParams

FILE = "generation_config.json"
_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_NOTHING = ("none", "vllm")
"""Words for no file at all; the second is vLLM's."""


def generation_defaults(
    folder: Path, source: str = "auto", override: Mapping[str, Any] | str | None = None
) -> dict[str, Any]:
    """Return fields of `SamplingParams` with the values that hold where a request leaves them out.

    Args:
        folder: the model's.
        source: auto: the model's file, if it has one; none: no file; else a folder with the file.
        override: values over those of the file, as an object or its JSON.

    Raises:
        ConfigError: no such file, or a value that no request may have.
    """
    chosen = (
        {} if source in _NOTHING else _read(folder if source == "auto" else Path(source), must_exist=source != "auto")
    )
    defaults = {name: chosen[name] for name in _NAMES if chosen.get(name) is not None}
    if chosen.get("do_sample") is False:
        defaults = {"temperature": 0.0}
    _check(
        defaults, f"{FILE} of {str(folder) if source == 'auto' else source!r}", "Mend the file, or remove the entry."
    )
    return defaults | read_override(override)


def _read(folder: Path, *, must_exist: bool) -> dict[str, Any]:
    if not must_exist and not (folder / FILE).is_file():
        return {}
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"generation_config={str(folder)!r} is not valid: {FILE} there cannot be read ({error}). Give a folder that "
            "has it, auto for the model's own, or none."
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(f"{str(folder / FILE)!r} holds no JSON object. Mend the file.")
    return content


def read_override(override: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """Check what an operator puts over a model's file.

    Raises:
        ConfigError: it is no object of such fields, or holds a value that no request may have.
    """
    if isinstance(override, str):
        text = override
        try:
            override = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"override_generation_config={text[:80]!r} is not valid: {error}. Give JSON.") from None
    if override is None:
        return {}
    if not isinstance(override, Mapping) or not override.keys() <= set(_NAMES):
        raise ConfigError(
            f"override_generation_config={str(override)[:80]!r} is not valid: it must be an object of some of "
            f"{', '.join(_NAMES)}. Requests say what else there is."
        )
    _check(override, "override_generation_config", "Give another value.")
    return dict(override)


def _check(values: Mapping[str, Any], origin: str, way_out: str) -> None:
    try:
        SamplingParams(**values)
    except InvalidRequest as error:
        raise ConfigError(f"{origin}: {error} {way_out}") from None
