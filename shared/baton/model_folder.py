"""From the name of a model to a folder with its config and tokenizer: a local one, or a snapshot from the hub. No torch.

Fetches neither weights nor code. Honours HF_HUB_OFFLINE, HF_HOME and HF_TOKEN, as huggingface_hub.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from baton.errors import ModelLoadError
from baton.foreign_model import foreign_model
from baton.hub_snapshot import fetch_snapshot

# What tells the model and its tokenizer.
SMALL_FILES = ("*.json", "*.model", "*.txt", "*.tiktoken", "chat_template.jinja", "additional_chat_templates/*.jinja")
# What sentence-transformers writes: layers behind the model are small too.
POOLING_FILES = ("*_Pooling/config.json", "*_Dense/config.json", "*_Dense/model.safetensors")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def find_model(path_or_id: str | Path, revision: str | None = None) -> Path:
    """Find the folder of a model; fetch the small files of a hub model.

    Raises:
        ModelLoadError: no such folder or repository, no access, no network, or what is there is no model.
    """
    folder = Path(path_or_id).expanduser()
    if not str(path_or_id):
        raise ModelLoadError("model='' names nothing. Give a folder with config.json, or a Hugging Face model id.")
    if folder.is_dir():
        return folder
    if folder.is_file():
        if foreign := foreign_model(f"model={str(path_or_id)!r}", folder, [folder.name]):
            raise ModelLoadError(foreign)
        raise ModelLoadError(f"model={str(path_or_id)!r} is a file. Give the folder with config.json and the weights.")
    repository = str(path_or_id)
    if isinstance(path_or_id, Path) or not HUB_ID.fullmatch(repository):
        raise ModelLoadError(
            f"model={repository!r}: no such folder. Give a folder with config.json, or a Hugging Face model id such as "
            "'Qwen/Qwen3-0.6B'."
        )
    snapshot = fetch_snapshot(repository, revision, SMALL_FILES, field="model")
    if not (snapshot / "config.json").is_file():
        raise ModelLoadError(_why_no_config(repository, snapshot))
    if (snapshot / "modules.json").is_file():
        fetch_snapshot(repository, snapshot.name, POOLING_FILES, field="model")
    return snapshot


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ModelLoadError: it cannot be read, or holds none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ModelLoadError(f"{path} is not JSON ({error}). Fetch the file again.") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} holds a JSON {type(value).__name__}, not an object. Fetch the file again.")
    return value


def _why_no_config(repository: str, snapshot: Path) -> str:
    name = f"model={repository!r}"
    with contextlib.suppress(Exception):  # offline: what is in the cache must do
        from huggingface_hub import HfApi

        if foreign := foreign_model(name, snapshot, HfApi().list_repo_files(repository, revision=snapshot.name)):
            return foreign
    return foreign_model(name, snapshot) or f"{name} has no config.json, so it is no model. Give one that has it."
