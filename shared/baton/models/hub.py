"""From the name of a model to a folder on this machine: a local one, or a snapshot of a Hugging Face repository.

Fetches config and tokenizer first, so that a model which Baton refuses costs no download, then the weights of
the very same commit. Fetches no pickled weights and no code. Honours HF_HUB_OFFLINE, HF_HOME and HF_TOKEN, as
huggingface_hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baton.errors import ModelLoadError
from baton.hub_snapshot import fetch_snapshot
from baton.model_folder import find_model
from baton.models.checkpoint import INDEX, PICKLED, SINGLE, no_safetensors, read_weight_map
from baton.models.config import read_spec
from baton.pooling_files import read_pooling


def locate(
    path_or_id: str | Path,
    revision: str | None = None,
    *,
    weights: bool = True,
    overrides: Mapping[str, Any] | None = None,
    model_impl: str = "auto",
) -> Path:
    """Find the folder of a model; fetch it from the hub if it is no local folder.

    Args:
        revision: branch, tag or commit of a hub model; means nothing to a folder.
        weights: fetch the weights too, not only config and tokenizer.
        overrides: values over those of config.json.
        model_impl: as of `read_spec`.

    Raises:
        ModelLoadError: no such folder or repository, no access, no network, or a model that Baton refuses.
    """
    found = find_model(path_or_id, revision)
    if Path(path_or_id).expanduser().is_dir():
        return found
    read_spec(found, read_pooling(found, overrides=overrides), overrides=overrides, model_impl=model_impl)
    if weights:
        _fetch_weights(str(path_or_id), found)
    return found


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
