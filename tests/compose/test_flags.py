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
    """Return a command that keeps what it was called with."""
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
        *("--gpu-memory-utilization", "0.5", "--served-model-name", "a", "--served-model-name", "b", "--also"),
    )
    assert engine == EngineConfig(
        model="some/model", max_model_len=128, dtype="float32", enable_prefix_caching=False, gpu_memory_utilization=0.5
    )
    assert worker == WorkerConfig(served_model_name=("a", "b"))
    assert also


def test_a_flag_goes_before_the_environment_and_that_before_the_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "baton.yaml"
    file.write_text("max-num-seqs: 1\nmax_num_batched_tokens: 2\nblock-size: 4\nserved-model-name: [x, y]\n")
    engine, worker, _ = run(
        *("--config", str(file), "--max-num-seqs", "3"), BATON_MAX_NUM_SEQS="2", BATON_MAX_NUM_BATCHED_TOKENS="20"
    )
    assert (engine.max_num_seqs, engine.max_num_batched_tokens, engine.block_size) == (3, 20, 4)
    assert worker.served_model_name == ("x", "y")


def test_files_that_the_environment_names_hold_values(run: Run, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("of the file\n")
    (tmp_path / "names").write_text("a b\nc\n")
    (tmp_path / "baton.yaml").write_text("cache-key: of the YAML file\nredis-url: redis://yaml\n")
    _, worker, _ = run(
        *("--config", str(tmp_path / "baton.yaml")),
        BATON_CACHE_KEY_FILE=str(tmp_path / "key"),
        BATON_SERVED_MODEL_NAME_FILE=str(tmp_path / "names"),
    )
    assert (worker.cache_key, worker.redis_url) == ("of the file", "redis://yaml")
    assert worker.served_model_name == ("a", "b", "c")
    _, worker, _ = run(BATON_CACHE_KEY_FILE=str(tmp_path / "key"), BATON_CACHE_KEY="of the environment")
    assert worker.cache_key == "of the environment"
    _, worker, _ = run("--cache-key", "of the flag", BATON_CACHE_KEY_FILE=str(tmp_path / "key"))
    assert worker.cache_key == "of the flag"


def test_a_secret_that_is_not_there_is_said_with_its_variable_and_its_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    for file, reason in (("none", "No such file"), ("", "Is a directory"), ("empty", "is empty")):
        with pytest.raises(ConfigError, match=f"BATON_CACHE_KEY_FILE=.*{file}.*{reason}.*baton secrets"):
            run(BATON_CACHE_KEY_FILE=str(tmp_path / file))


def test_variables_without_a_value_are_as_if_not_there(run: Run) -> None:
    empty = {f"BATON_{name}": "" for name in ("MODEL", "API_KEY", "REDIS_URL", "MAX_MODEL_LEN", "CACHE_KEY_FILE")}
    assert run(**empty) == (EngineConfig(), WorkerConfig(), False)


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
    [EngineConfig(), EngineConfig(max_model_len=7, enforce_eager=True, enable_chunked_prefill=False, dtype="bfloat16")],
)
def test_settings_become_flags_and_settings_again(run: Run, settings: EngineConfig) -> None:
    assert run(*as_arguments(settings))[0] == settings
