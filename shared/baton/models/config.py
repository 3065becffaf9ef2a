"""What a checkpoint's config.json says, as one validated ModelSpec.

Refuses architectures that Baton does not define, code that comes with a checkpoint, weights in forms that are not served, and values that
no model can have; each refusal names the field, the value, the limit and the way out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from baton.errors import ModelLoadError
from baton.foreign_model import foreign_model
from baton.model_config import read_config
from baton.model_folder import read_json
from baton.models.families import ANY, BY_ARCHITECTURE, BY_NAME
from baton.models.family import Family
from baton.models.fields import FIX_CONFIG, Fields
from baton.models.linear import ByModule
from baton.models.spec import ModelSpec
from baton.models.transformers_lm import refuse_quantization
from baton.models.transformers_model import defines
from baton.models.weight_forms import read_weight_form
from baton.pooling_files import CLASSIFIER, PoolingSetup

__all__ = ["make_spec", "read_spec"]


def read_spec(
    folder: Path | str,
    pooling: PoolingSetup | None = None,
    quantization: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    model_impl: str = "auto",
) -> ModelSpec:
    """Read the spec of the checkpoint in a folder.

    Args:
        pooling: of the model that pools so, in place of an output layer.
        quantization: how its weights are, or are to be, quantized.
        overrides: values over those of config.json.
        model_impl: "baton" is one of Baton's own families, "transformers" what transformers defines on Baton's attention;
            "auto" takes the second where there is no first.

    Raises:
        ModelLoadError: no such folder, no or damaged config.json, or a model that Baton does not run.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ModelLoadError(_wrong_folder(folder))
    generation = folder / "generation_config.json"
    return make_spec(
        read_config(folder, overrides),
        read_json(generation) if generation.is_file() else {},
        source=str(folder),
        pooling=pooling,
        quantization=quantization,
        model_impl=model_impl,
    )


def make_spec(
    raw: Mapping[str, Any],
    generation: Mapping[str, Any] | None = None,
    source: str = "config",
    pooling: PoolingSetup | None = None,
    quantization: str | None = None,
    model_impl: str = "auto",
) -> ModelSpec:
    """Make the spec from the contents of config.json and generation_config.json."""
    family = _family(raw, source, model_impl, pools=pooling is not None)
    fields = Fields(raw, source)
    _refuse_remote_code(fields, family)
    if family is ANY:
        refuse_quantization(quantization, source)
    spec = family.read(fields)
    assert not isinstance(spec.weight_form, ByModule)  # of the family, which knows one form
    quantized = read_weight_form(fields, spec.weight_form, quantization)
    return replace(
        spec,
        weight_form=quantized or spec.weight_form,
        family=family.name,
        dtype=fields.dtype(),
        eos_token_ids=_eos_token_ids(fields, generation or {}, family),
        pooling=pooling,
    )


def _wrong_folder(folder: Path) -> str:
    if not folder.is_dir():
        return f"model={str(folder)!r}: no such folder. Give a folder with config.json, or a Hugging Face model id."
    if foreign := foreign_model(f"model={str(folder)!r}", folder):
        return foreign
    names = sorted(entry.name for entry in folder.iterdir())
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
    return f"model={str(folder)!r} has no config.json; it holds {shown}. Give the folder that has config.json."


def _family(raw: Mapping[str, Any], source: str, model_impl: str, *, pools: bool) -> Family:
    """Find the family; an architecture is believed before model_type."""
    if model_impl == "transformers":
        if pools:
            raise ModelLoadError(
                f"{source}: model_impl='transformers' is not served for a model that pools. Leave --model-impl out, or "
                "give --runner generate."
            )
        return ANY
    known = ", ".join(BY_ARCHITECTURE)
    architectures = raw.get("architectures")
    if architectures is None or architectures == []:
        model_type = raw.get("model_type")
        if isinstance(model_type, str) and model_type in BY_NAME:
            return BY_NAME[model_type]
        raise ModelLoadError(
            f"{source}: config.json names no architectures, and model_type={model_type!r} is none that Baton runs. "
            f"It runs {known}."
        )
    if not isinstance(architectures, list) or not isinstance(architectures[0], str):
        raise ModelLoadError(f"{source}: architectures={architectures!r} is not a list of names. {FIX_CONFIG}")
    architecture = architectures[0]
    for name in (architecture, *(_generating(architecture) if pools else ())):
        if name in BY_ARCHITECTURE:
            return BY_ARCHITECTURE[name]
    if model_impl == "auto" and not pools and not raw.get("auto_map") and defines(raw, architecture):
        return ANY
    remote = ""
    if raw.get("auto_map"):
        remote = f" It asks for code of its own (auto_map={raw['auto_map']!r}), which Baton never runs."
    raise ModelLoadError(
        f"{source}: architectures={architecture!r} is not a model that Baton runs.{remote} It runs {known}."
    )


def _generating(architecture: str) -> Iterator[str]:
    """Yield what the same model is called with an output layer: one that pools is named by its body, or its task."""
    for ending in ("Model", CLASSIFIER):
        if architecture.endswith(ending):
            yield architecture.removesuffix(ending) + "ForCausalLM"


def _refuse_remote_code(fields: Fields, family: Family) -> None:
    auto_map = fields.raw.get("auto_map")
    if not auto_map:
        return
    if not isinstance(auto_map, Mapping):
        raise fields.refusal("auto_map", auto_map, "it must map transformers' classes to code")
    model_code = {str(code) for name, code in auto_map.items() if name == "AutoConfig" or name.startswith("AutoModel")}
    strange = sorted(model_code - family.harmless_code)
    if strange:
        raise ModelLoadError(
            f"{fields.source}: config.json asks for remote code, auto_map={', '.join(strange)!r}. Baton never runs "
            "code that comes with a checkpoint. If the model is the plain architecture, remove auto_map from "
            "config.json."
        )


def _eos_token_ids(fields: Fields, generation: Mapping[str, Any], family: Family) -> tuple[int, ...]:
    """The ids that end an answer: generation_config.json's, as for `generate`, else config.json's."""
    value = generation.get("eos_token_id")
    if value is None:
        value = fields.raw.get("eos_token_id", family.eos)
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(token_id, int) and not isinstance(token_id, bool) for token_id in ids):
        raise fields.refusal("eos_token_id", value, "it must be a token id or a list of them")
    return tuple(token_id for token_id in ids if token_id >= 0)
