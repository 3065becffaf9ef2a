"""From the name of a model to a folder on this machine: a local one, or a snapshot of a Hugging Face repository.

Fetches config and tokenizer first, so that a model which Baton refuses costs no download, then the weights of
the very same commit. Fetches no pickled weights and no code. Honours HF_HUB_OFFLINE, HF_HOME and HF_TOKEN, as
huggingface_hub.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from baton.errors import ModelLoadError
from baton.foreign_model import foreign_model
from baton.hub_snapshot import fetch_snapshot
from baton.models.checkpoint import INDEX, PICKLED, SINGLE, no_safetensors, read_weight_map
from baton.models.config import read_spec

# What tells the model and its tokenizer.
SMALL_FILES = ("*.json", "*.model", "*.txt", "*.tiktoken", "chat_template.jinja", "additional_chat_templates/*.jinja")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def locate(path_or_id: str | Path, revision: str | None = None, *, weights: bool = True) -> Path:
    """Find the folder of a model; fetch it from the hub if it is no local folder.

    Args:
        revision: branch, tag or commit of a hub model; means nothing to a folder.
        weights: fetch the weights too, not only config and tokenizer.

    Raises:
        ModelLoadError: no such folder or repository, no access, no network, or a model that Baton refuses.
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
    read_spec(snapshot)
    if weights:
        _fetch_weights(repository, snapshot)
    return snapshot


def _fetch_weights(repository: str, snapshot: Path) -> None:
    """Fetch the safetensors files that the commit of a snapshot has."""
    commit = snapshot.name
    if (snapshot / INDEX).is_file():
        patterns = tuple(sorted(set(read_weight_map(snapshot / INDEX).values())))
    else:
        patterns = (SINGLE,)
    fetched = fetch_snapshot(repository, commit, patterns, field="model")
    if not any(fetched.glob("*.safetensors")):
        raise ModelLoadError(_why_no_weights(repository, commit))


def _why_no_config(repository: str, snapshot: Path) -> str:
    name = f"model={repository!r}"
    with contextlib.suppress(Exception):  # offline: what is in the cache must do
        from huggingface_hub import HfApi

        if foreign := foreign_model(name, snapshot, HfApi().list_repo_files(repository, revision=snapshot.name)):
            return foreign
    return foreign_model(name, snapshot) or f"{name} has no config.json, so it is no model. Give one that has it."


def _why_no_weights(repository: str, commit: str) -> str:
    from huggingface_hub import HfApi

    try:
        names = HfApi().list_repo_files(repository, revision=commit)
    except Exception as error:
        return f"model={repository!r}: no {SINGLE} in the cache, and the hub does not answer ({type(error).__name__})."
    pickled = sorted(name for name in names if name.endswith(PICKLED))
    if pickled:
        return no_safetensors(f"model={repository!r}", pickled)
    return f"model={repository!r} has neither {SINGLE} nor {INDEX}. Give a model with weights in safetensors."
