"""Flags are made from settings: file < environment < flag, and one way back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from baton.config import EngineConfig
from baton.errors import ConfigError
from baton.flags import as_arguments, with_flags
from baton.worker.settings import WorkerConfig

Run = Callable[..., Any]


@pytest.fixture
def run() -> Run:
    """Give a command that keeps what it was called with."""
    app, seen = typer.Typer(), []

    @app.command()
    @with_flags
    def command(
        engine: EngineConfig,
        worker: WorkerConfig,
        also: Annotated[bool, typer.Option(help="one more")] = False,
        model: Annotated[str | None, typer.Argument(help="model")] = None,
    ) -> None:
        seen.append((engine, worker, also))

    def call(*arguments: str, **environment: str) -> Any:
        result = CliRunner().invoke(app, list(arguments), env=environment)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return seen[-1]

    return call


def test_without_flags_every_setting_has_its_default(run: Run) -> None:
    assert run() == (EngineConfig(), WorkerConfig(), False)


def test_flags_of_every_type_arrive(run: Run) -> None:
    engine, worker, also = run(
        *("some/model", "--max-model-len", "128", "--dtype", "float32", "--no-enable-prefix-caching"),
        *(
            "--gpu-memory-utilization",
            "0.5",
            "--served-model-name",
            "a",
            "--served-model-name",
            "b",
            "--also",
        ),
    )
    assert engine == EngineConfig(
        model="some/model",
        max_model_len=128,
        dtype="float32",
        enable_prefix_caching=False,
        gpu_memory_utilization=0.5,
    )
    assert worker == WorkerConfig(served_model_name=("a", "b"))
    assert also


def test_a_flag_goes_before_the_environment_and_that_before_the_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "baton.yaml"
    file.write_text("max-num-seqs: 1\nmax_num_batched_tokens: 2\nblock-size: 4\nserved-model-name: [x, y]\n")
    engine, worker, _ = run(
        *("--config", str(file), "--max-num-seqs", "3"),
        BATON_MAX_NUM_SEQS="2",
        BATON_MAX_NUM_BATCHED_TOKENS="20",
    )
    assert (engine.max_num_seqs, engine.max_num_batched_tokens, engine.block_size) == (3, 20, 4)
    assert worker.served_model_name == ("x", "y")


def test_a_file_with_an_unknown_flag_is_refused_by_name(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "baton.yaml"
    file.write_text("max-model-length: 1\n")
    with pytest.raises(ConfigError, match="--max-model-length"):
        run("--config", str(file))


def test_wrong_values_are_refused_by_the_settings(run: Run) -> None:
    with pytest.raises(ConfigError, match="block_size"):
        run("--block-size", "12")


@pytest.mark.parametrize(
    "settings",
    [
        EngineConfig(),
        EngineConfig(max_model_len=7, enforce_eager=True, enable_chunked_prefill=False, dtype="bfloat16"),
    ],
)
def test_settings_become_flags_and_settings_again(run: Run, settings: EngineConfig) -> None:
    assert run(*as_arguments(settings))[0] == settings
