"""The wheel is whole: every portion of the namespace, the package of the distribution's name, and both run as modules."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(built) as wheel:
        wheel.extractall(folder / "unpacked")
    return folder / "unpacked"


def run(unpacked: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python on the wheel and what it depends on; without `site`, so that no editable install is seen."""
    path = os.pathsep.join((str(unpacked), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    return subprocess.run(
        [sys.executable, "-S", *words],
        text=True,
        capture_output=True,
        check=False,
        cwd=unpacked,
        env={"PYTHONPATH": path, "PATH": ""},
    )


def test_the_namespace_has_no_init_and_the_wheel_all_its_portions(unpacked: Path) -> None:
    assert not (unpacked / "baton" / "__init__.py").exists()
    portions = ("cli.py", "llm.py", "router/app.py", "prefill/leg.py", "decode/leg.py", "kvtransfer/wire.py", "kernels")
    assert all((unpacked / "baton" / name).exists() for name in portions)


@pytest.mark.parametrize("module", ["baton", "batonllm", "baton.cli"])
def test_the_wheel_runs_as_a_module(unpacked: Path, module: str) -> None:
    result = run(unpacked, "-m", module, "--version")
    assert result.stdout == f"{importlib.metadata.version('batonllm')}\n", result.stderr


def test_the_package_of_the_distributions_name_is_in_the_wheel(unpacked: Path) -> None:
    code = "import batonllm, baton.cli; print(batonllm.__file__, baton.cli.__file__, batonllm.SamplingParams().n)"
    result = run(unpacked, "-c", code)
    assert result.stdout.split() == [
        str(unpacked / "batonllm" / "__init__.py"),
        str(unpacked / "baton" / "cli.py"),
        "1",
    ], result.stderr
