"""What a checkpoint's config.json says, as one validated ModelSpec.

Refuses architectures that Baton does not define, code that comes with a checkpoint, quantized weights, and
values that no model can have; each refusal names the field, the value, the limit and the way out. Knows no
torch, so whoever plans memory or checks a context length can read a spec without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baton.errors import ModelLoadError
from baton.models.families import FAMILIES
from baton.models.fields import DTYPES, FIX_CONFIG, Fields
from baton.models.spec import ModelSpec, RopeSpec

__all__ = ["ARCHITECTURES", "ModelSpec", "RopeSpec", "make_spec", "read_json", "read_spec"]

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma2ForCausalLM": "gemma2",
    "Phi3ForCausalLM": "phi3",
    "GPT2LMHeadModel": "gpt2",
    "OPTForCausalLM": "opt",
}


def read_spec(folder: Path | str) -> ModelSpec:
    """Read the spec of the checkpoint in a folder.

    Raises:
        ModelLoadError: no such folder, no or damaged config.json, or a model that Baton does not run.
    """
    folder = Path(folder)
    raw = read_json(folder / "config.json", missing=_wrong_folder(folder))
    generation = folder / "generation_config.json"
    return make_spec(raw, read_json(generation) if generation.is_file() else {}, source=str(folder))


def make_spec(raw: Mapping[str, Any], generation: Mapping[str, Any] | None = None, source: str = "config") -> ModelSpec:
    """Make the spec from the contents of config.json and generation_config.json."""
    family, architecture = _family(raw, source)
    fields = Fields(raw, source)
    _refuse_remote_code(fields, family)
    _refuse_quantized(fields)
    spec_values = FAMILIES[family](fields)
    return ModelSpec(
        family=family,
        architecture=architecture,
        dtype=fields.dtype(),
        eos_token_ids=_eos_token_ids(fields, generation or {}, family),
        bos_token_id=fields.optional_integer("bos_token_id", minimum=0),
        **spec_values,
    )


def read_json(path: Path, missing: str = "") -> dict[str, Any]:
    """Read a JSON object; `missing` is the message when there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(missing or f"{path} is missing. Fetch the checkpoint again.") from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ModelLoadError(f"{path} is not JSON ({error}). Fetch the file again.") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} holds a JSON {type(value).__name__}, not an object. Fetch the file again.")
    return value


def _wrong_folder(folder: Path) -> str:
    if not folder.is_dir():
        return f"model={str(folder)!r}: no such folder. Give a folder with config.json, or a Hugging Face model id."
    if (folder / "adapter_config.json").is_file():
        return (
            f"model={str(folder)!r} holds a LoRA adapter, not a model: it has adapter_config.json and no "
            "config.json. "
            "Give the folder of its base model."
        )
    names = sorted(entry.name for entry in folder.iterdir())
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
    return f"model={str(folder)!r} has no config.json; it holds {shown}. Give the folder that has config.json."


# Microsoft published Phi-3 before transformers had it, so its checkpoints still name the code they came with.
# Baton's own definition is that model, and the named code is never fetched nor run.
_HARMLESS_CODE = {"phi3": {"configuration_phi3.Phi3Config", "modeling_phi3.Phi3ForCausalLM"}}


def _family(raw: Mapping[str, Any], source: str) -> tuple[str, str]:
    """Give family and architecture; an architecture field is believed before model_type."""
    known = ", ".join(ARCHITECTURES)
    architectures = raw.get("architectures")
    if architectures is None or architectures == []:
        by_type = {family: architecture for architecture, family in ARCHITECTURES.items()}
        model_type = raw.get("model_type")
        if isinstance(model_type, str) and model_type in by_type:
            return model_type, by_type[model_type]
        raise ModelLoadError(
            f"{source}: config.json names no architectures, and model_type={model_type!r} is none that Baton "
            "runs. "
            f"It runs {known}."
        )
    if not isinstance(architectures, list) or not isinstance(architectures[0], str):
        raise ModelLoadError(f"{source}: architectures={architectures!r} is not a list of names. {FIX_CONFIG}")
    architecture = architectures[0]
    if architecture in ARCHITECTURES:
        return ARCHITECTURES[architecture], architecture
    remote = (
        f" It asks for code of its own (auto_map={raw['auto_map']!r}), which Baton never runs."
        if raw.get("auto_map")
        else ""
    )
    raise ModelLoadError(
        f"{source}: architectures={architecture!r} is not a model that Baton runs.{remote} It runs {known}."
    )


def _refuse_remote_code(fields: Fields, family: str) -> None:
    auto_map = fields.raw.get("auto_map")
    if not auto_map:
        return
    if not isinstance(auto_map, Mapping):
        raise fields.refusal("auto_map", auto_map, "it must map transformers' classes to code")
    model_code = {str(code) for name, code in auto_map.items() if name == "AutoConfig" or name.startswith("AutoModel")}
    strange = sorted(model_code - _HARMLESS_CODE.get(family, set()))
    if strange:
        raise ModelLoadError(
            f"{fields.source}: config.json asks for remote code, auto_map={', '.join(strange)!r}. Baton "
            "never runs code "
            "that comes with a checkpoint. If the model is the plain architecture, remove auto_map from "
            "config.json."
        )


def _refuse_quantized(fields: Fields) -> None:
    for name in ("quantization_config", "compression_config"):
        value = fields.raw.get(name)
        if value:
            method = value.get("quant_method", "unnamed") if isinstance(value, Mapping) else value
            raise ModelLoadError(
                f"{fields.source}: {name} says quant_method={method!r}; Baton loads unquantized weights "
                f"({', '.join(DTYPES)}). Take the unquantized checkpoint of this model."
            )


def _eos_token_ids(fields: Fields, generation: Mapping[str, Any], family: str) -> tuple[int, ...]:
    """Give the ids that end an answer: generation_config.json's, as for `generate`, else config.json's."""
    value = generation.get("eos_token_id")
    if value is None:
        value = fields.raw.get("eos_token_id", _EOS_DEFAULTS[family])
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(token_id, int) and not isinstance(token_id, bool) for token_id in ids):
        raise fields.refusal("eos_token_id", value, "it must be a token id or a list of them")
    return tuple(token_id for token_id in ids if token_id >= 0)


# The values that transformers takes where config.json has no eos_token_id.
_EOS_DEFAULTS: dict[str, int | None] = {
    "llama": 2,
    "mistral": 2,
    "qwen2": None,
    "qwen3": None,
    "gemma2": 1,
    "phi3": 32000,
    "gpt2": 50256,
    "opt": 2,
}
