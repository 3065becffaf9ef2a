"""A model id becomes a folder: config first, then weights of the same commit, and never a pickle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from baton.errors import ModelLoadError
from baton.models.hub import locate

COMMIT = "0123456789012345678901234567890123456789"


class FakeHub:
    """A hub with one repository, whose snapshots lie in a cache folder."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository = repository
        self.snapshot = cache / COMMIT
        self.calls: list[tuple[str, str | None]] = []

    def snapshot_download(
        self,
        name: str,
        *,
        revision: str | None,
        allow_patterns: list[str],
        ignore_patterns: list[str],
        tqdm_class: type,
    ) -> str:
        self.calls.append((name, revision))
        self.snapshot.mkdir(exist_ok=True)
        for file in self.repository.rglob("*"):
            path = file.relative_to(self.repository).as_posix()
            allowed = any(fnmatch(path, pattern) for pattern in allow_patterns)
            if file.is_file() and allowed and not any(fnmatch(path, pattern) for pattern in ignore_patterns):
                (self.snapshot / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, self.snapshot / path)
        return str(self.snapshot)

    def fetched(self) -> set[str]:
        return {file.relative_to(self.snapshot).as_posix() for file in self.snapshot.rglob("*") if file.is_file()}


@pytest.fixture
def hub(tiny_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    repository = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "repository"))
    for name in ("tokenizer.json", "chat_template.jinja", "pytorch_model.bin", "modeling_x.py", "original/params.json"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("{}")
    (tmp_path / "cache").mkdir()
    fake = FakeHub(repository, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "list_repo_files",
        lambda self, name, revision: [file.name for file in repository.iterdir()],
    )
    return fake


WANTED = {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"}


def test_config_comes_first_then_weights_of_that_commit(hub: FakeHub) -> None:
    assert locate("someone/model", "main") == hub.snapshot
    assert hub.calls == [("someone/model", "main"), ("someone/model", COMMIT)]
    assert hub.fetched() == WANTED | {"model.safetensors"}


def test_dummy_weights_fetch_no_weights(hub: FakeHub) -> None:
    locate("someone/model", weights=False)
    assert hub.fetched() == WANTED


def test_a_refused_model_costs_no_download(hub: FakeHub) -> None:
    config = json.loads((hub.repository / "config.json").read_text())
    (hub.repository / "config.json").write_text(json.dumps(config | {"architectures": ["MambaForCausalLM"]}))
    with pytest.raises(ModelLoadError, match="MambaForCausalLM"):
        locate("someone/model")
    assert hub.fetched() == WANTED


def test_only_the_shards_of_the_index_are_fetched(hub: FakeHub) -> None:
    (hub.repository / "model.safetensors").rename(hub.repository / "model-1-of-1.safetensors")
    (hub.repository / "consolidated.safetensors").write_text("")
    index = {"weight_map": {"model.norm.weight": "model-1-of-1.safetensors"}}
    (hub.repository / "model.safetensors.index.json").write_text(json.dumps(index))
    locate("someone/model")
    assert hub.fetched() == WANTED | {"model.safetensors.index.json", "model-1-of-1.safetensors"}


def test_a_repository_with_only_pickled_weights_is_refused(hub: FakeHub) -> None:
    (hub.repository / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin.*save_pretrained"):
        locate("someone/model")


def test_a_repository_of_gguf_files_says_what_to_take(hub: FakeHub) -> None:
    (hub.repository / "config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"model='someone/x' has no config\.json"):
        locate("someone/x")
    (hub.repository / "x.Q8_0.gguf").touch()
    with pytest.raises(ModelLoadError, match=r"model='someone/x' holds GGUF files \(x\.Q8_0\.gguf\)"):
        locate("someone/x")


def test_no_network_and_no_cache_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelLoadError, match="hub cannot be reached"):
        locate("someone/model")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "~/nowhere", "-x/y"])
def test_what_is_no_id_is_a_missing_folder(name: str) -> None:
    with pytest.raises(ModelLoadError, match="no such folder"):
        locate(name)


def test_an_empty_name_is_not_this_folder() -> None:
    with pytest.raises(ModelLoadError, match="names nothing"):
        locate("")


def test_a_folder_is_itself(tiny_checkpoint: Callable[[str], Path]) -> None:
    folder = tiny_checkpoint("llama")
    assert locate(folder) == folder == locate(str(folder))
