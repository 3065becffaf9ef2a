"""The secrets of a deployment: made once, for their owner, as services take them."""

from __future__ import annotations

from pathlib import Path

import pytest
import zmq

from baton.errors import ConfigError
from baton.router.config import RouterConfig
from baton.secret_files import write_secrets
from baton.worker.settings import WorkerConfig

NAMES = ["api_key", "cache_key", "curve_public_key", "curve_secret_key", "redis_password"]


def read(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_secrets_are_what_services_take(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "secrets"
    assert write_secrets(folder) == NAMES
    made = read(folder)
    assert sorted(made) == NAMES
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o444}
    assert zmq.curve_public(made["curve_secret_key"].encode()).decode() == made["curve_public_key"]
    RouterConfig(model="m", api_key=(made["api_key"],))
    WorkerConfig(host="auto", curve_public_key=made["curve_public_key"], curve_secret_key=made["curve_secret_key"])


def test_what_is_there_stays_and_only_what_lacks_is_made(tmp_path: Path) -> None:
    write_secrets(tmp_path)
    before = read(tmp_path)
    (tmp_path / "redis_password").unlink()
    assert write_secrets(tmp_path) == ["redis_password"]
    after = read(tmp_path)
    assert after.pop("redis_password") != before.pop("redis_password")
    assert after == before
    assert write_secrets(tmp_path) == []


def test_half_a_key_pair_is_refused(tmp_path: Path) -> None:
    (tmp_path / "curve_secret_key").write_text("mine")
    with pytest.raises(ConfigError, match="curve_public_key"):
        write_secrets(tmp_path)
    assert read(tmp_path) == {"curve_secret_key": "mine"}


def test_a_folder_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_secrets(tmp_path / "file" / "folder")
