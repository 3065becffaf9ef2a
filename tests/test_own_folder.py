"""Folders that go with their process, also with one that was killed."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton.own_folder import OwnFolder

OWNER = "import sys; from baton.own_folder import OwnFolder; print(OwnFolder('x-', within=sys.argv[1]).path, flush=True); sys.stdin.read()"


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def folder_of(owner: subprocess.Popen[str]) -> Path:
    assert owner.stdout is not None
    return Path(owner.stdout.readline().strip())


def test_what_a_killed_process_left_is_removed_by_the_next(owner: subprocess.Popen[str], tmp_path: Path) -> None:
    theirs = folder_of(owner)
    (theirs / "file").touch()
    ours = OwnFolder("x-", within=str(tmp_path))
    assert theirs.is_dir(), "its process lives"
    owner.kill()
    owner.wait()
    another = OwnFolder("x-", within=str(tmp_path))
    assert sorted(tmp_path.iterdir()) == sorted([Path(ours.path), Path(another.path)])
    for each in (ours, another):
        assert Path(each.path).stat().st_mode & 0o077 == 0
        each.close()
    assert not list(tmp_path.iterdir())


def test_a_folder_of_an_older_version_stays_while_somebody_listens_in_it(tmp_path: Path) -> None:
    old, other = tmp_path / "x-old", tmp_path / "y"
    for folder in (old, other):
        folder.mkdir()
    (tmp_path / "x-file").touch()
    (tmp_path / "x-link").symlink_to(other)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(old / "kv-0"))
        listener.listen()
        OwnFolder("x-", within=str(tmp_path)).close()
        assert old.is_dir()
    OwnFolder("x-", within=str(tmp_path)).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-file", "x-link", "y"]
