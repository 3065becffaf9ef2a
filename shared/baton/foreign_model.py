"""Says what a folder or repository holds that is no model for Baton, though it is often given as one. No torch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

ADAPTER = "adapter_config.json"
CONSOLIDATED = (
    "has its weights in the format of Mistral's and Meta's own code alone (params.json, consolidated.*), where queries and "
    "keys lie in another order. Give the same model as transformers has it, with config.json and model*.safetensors: its "
    "page on the hub has both, or convert it with transformers' convert_mistral_weights_to_hf.py or "
    "convert_llama_weights_to_hf.py."
)


def foreign_model(name: str, folder: Path, others: Iterable[str] = ()) -> str | None:
    """Say that `folder` holds an adapter or GGUF files, with the way out; None: neither, or a model too.

    Args:
        name: how the user named it, as `model='x'`.
        others: names of files that are not in the folder, but in its repository.
    """
    files = {*others, *(entry.name for entry in folder.iterdir())} if folder.is_dir() else set(others)
    if "config.json" in files:
        return None
    if ADAPTER in files:
        return _adapter(name, folder / ADAPTER)
    if "params.json" in files:
        return f"{name} {CONSOLIDATED}"
    if gguf := sorted(file for file in files if file.lower().endswith(".gguf")):
        return (
            f"{name} holds GGUF files ({', '.join(gguf[:3])}{', ...' if gguf[3:] else ''}), which Baton does not read: it "
            "loads safetensors. Give the model that they were made from (a GGUF repository's page names it as its base "
            "model): a folder or hub id with config.json and *.safetensors."
        )
    return None


def _adapter(name: str, file: Path) -> str:
    base = None
    with contextlib.suppress(OSError, ValueError, AttributeError):
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    of = f" of {base!r}" if isinstance(base, str) else ""
    return (
        f"{name} holds a LoRA adapter{of}, not a model: it has {ADAPTER} and no config.json. Adapters are not served yet: "
        f"give {repr(base) if of else 'its base model'}, or merge the adapter into it once, with peft: "
        "AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload().save_pretrained(merged)."
    )
