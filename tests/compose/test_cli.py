"""The command line as people meet it: help that is whole at 80 columns, vLLM's spellings, errors that say what to type."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest
import typer.main
import yaml
from typer.testing import CliRunner

from baton import vllm_table
from baton.cli import app
from baton.errors import BatonError, ConfigError, UnsupportedFeature
from baton.spelling import ours
from baton.vllm_names import BENCH, FLAGS, Name

SERVICES: Any = typer.main.get_command(app)
COMMANDS = ("up", "serve", "router", "prefill", "decode", "chat", "complete", "top", "bench", "config", "bench serve")
ASKS = "asks-for-something"


def call(*arguments: str, module: str = "baton", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(
        command, text=True, capture_output=True, check=False, env={**os.environ, "COLUMNS": "80", **environment}
    )


def shown(*arguments: str, **environment: str) -> dict[str, Any]:
    """Return the settings of `baton up` with these arguments, through its own parser."""
    result = CliRunner().invoke(app, ["config", "show", *arguments], env=environment)
    if isinstance(result.exception, BatonError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return dict(yaml.safe_load(result.stdout))


def flags_of(command: Any) -> set[str]:
    return {flag for each in command.params for flag in (*each.opts, *each.secondary_opts) if flag.startswith("--")}


# -- help -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["up", "router", "decode"])
def test_help_at_80_columns_shows_every_flag_whole_in_groups_with_its_variable(name: str) -> None:
    text = call(name, "--help-all" if name == "up" else "--help").stdout
    words = set(re.split(r"[\s,/]+", text))
    assert flags_of(SERVICES.commands[name]) <= words
    assert max(map(len, text.splitlines())) <= 80
    assert "\nModel:\n" in text
    assert "BATON_MODEL" in text
    assert "default: no-" not in " ".join(text.split())
    assert "…" not in text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_no_wider_than_the_terminal_and_cuts_nothing(name: str) -> None:
    text = CliRunner(env={"COLUMNS": "80"}).invoke(app, [*name.split(), "-h"]).stdout
    assert text.startswith("Usage: ")
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in re.sub(r"(ARGS|\w>|\]|FLAGS)\.\.\.", "", text)
    assert "…" not in text


def test_up_shows_what_everybody_may_need_and_says_where_the_rest_is() -> None:
    text = CliRunner().invoke(app, ["up", "--help"]).stdout
    assert "--gpu-memory-utilization" in text
    assert "--num-gpu-blocks-override" not in text
    assert 15 <= len(re.findall(r"^  --", text, re.MULTILINE)) <= 25
    assert "more flags: --help-all shows them" in text


@pytest.mark.parametrize("module", ["baton", "batonllm"])
def test_both_packages_run_as_modules(module: str) -> None:
    result = call("--version", module=module)
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", result.stdout), result.stderr


def test_the_package_of_the_distributions_name_gives_its_version_without_torch() -> None:
    code = "import sys; from batonllm import __version__; print(__version__, 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert re.fullmatch(r"\d+\.\d+\.\d+ False\n", result.stdout)
    from baton.llm import LLM
    from batonllm import LLM as same

    assert same is LLM


# -- what vLLM's users type -----------------------------------------------------------------------------------


def test_serve_is_up_and_flags_without_a_command_are_those_of_up() -> None:
    result = call("--model", "/nowhere", "--port", "0")
    assert result.stderr == "baton: port=0 is not valid: it must be 1 to 65535.\n"
    assert call("serve", "/nowhere", "--port", "0").stderr == result.stderr
    assert call("some/model", "--port=0").stderr == result.stderr


def test_the_model_is_named_by_the_argument_the_flag_or_the_variable() -> None:
    assert shown("a/b")["model"] == shown("--model", "a/b")["model"] == shown(BATON_MODEL="a/b")["model"] == "a/b"
    assert shown("a/b", BATON_MODEL="c/d")["model"] == "a/b"


def test_a_model_named_twice_is_refused() -> None:
    result = CliRunner().invoke(app, ["up", "a", "--model", "b"])
    assert isinstance(result.exception, ConfigError)
    assert "model='b' is not valid beside MODEL='a'" in str(result.exception)


@pytest.mark.parametrize(
    ("typed", "taken"),
    [
        ("--max_model_len 8192", {"max-model-len": 8192}),
        ("--max-model-len 8k", {"max-model-len": 8000}),
        ("--max-model-len=8K", {"max-model-len": 8192}),
        ("--max-model-len 25.6k", {"max-model-len": 25600}),
        ("--max-model-len auto", {"max-model-len": -1}),
        ("--max-model-len -1", {"max-model-len": -1}),
        ("--kv-cache-memory-bytes 2G", {"kv-cache-memory-bytes": 2 << 30}),
        ("--dtype half", {"dtype": "half"}),
        ("M --served-model-name a b --port 9", {"served-model-name": ["a", "b"], "port": 9, "model": "M"}),
        ("--model M --served_model_name a b", {"served-model-name": ["a", "b"], "model": "M"}),
        ("--served-model-name a M", {"served-model-name": ["a"], "model": "M"}),
        ("--max-num-queued-reqs 7", {"max-num-waiting": 7}),
        ("--shutdown-timeout 3 M", {"drain-s": 3.0, "model": "M"}),
        ("-tp 1 -O3 --no-enable-lora --swap-space=4 M", {"model": "M"}),
        ("--tensor-parallel-size 1 M", {"model": "M"}),
        ("--cudagraph-capture-sizes 1 2 4 --port 9", {"port": 9}),
        ("--trust-remote-code M", {"model": "M"}),
        ("--compilation-config.mode 3 M", {"model": "M"}),
    ],
)
def test_spellings_of_vllm_reach_batons_own_settings(typed: str, taken: dict[str, Any]) -> None:
    settings = shown(*typed.split())
    assert {name: settings[name] for name in taken} == taken


@pytest.mark.parametrize("wrong", ["8x", "0.5", "8.5", "k", ""])
def test_what_is_no_whole_number_is_refused(wrong: str) -> None:
    result = CliRunner().invoke(app, ["up", "--max-model-len", wrong])
    assert result.exit_code == 2
    assert "is no whole number" in result.stderr


@pytest.mark.parametrize(
    ("table", "name"),
    [*(("up", name) for name in FLAGS.values()), *(("bench", name) for name in BENCH.values())],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_flag_of_vllm_behaves_as_the_table_says(table: str, name: Name) -> None:
    command = SERVICES.commands["up"] if table == "up" else SERVICES.commands["bench"].commands["serve"]
    flag, known = f"--{name.name.replace('_', '-')}", {"up": FLAGS, "bench": BENCH}[table]
    if name.kind == "taken" or flag in flags_of(command):
        assert name.kind == "taken", f"{flag} is Baton's own: move {name.name} to what is taken in vllm_table.py"
        assert f"--{name.ours.replace('_', '-')}" in flags_of(command)
        return
    said: list[str] = []
    if name.kind == "neutral":
        words = [flag] if name.is_switch else [flag, ASKS]
        assert ours(words, command.params, said.append, table=known) == []
        assert said == [f"{' '.join(words)} changes nothing here. {name.says}"]
        return
    with pytest.raises(UnsupportedFeature, match=re.escape(f" is not served. {name.says}")):
        ours([flag] if name.is_switch else [flag, ASKS], command.params, table=known)
    for neutral in name.values:
        assert ours([f"{flag}={neutral}"], command.params, said.append, table=known) == []


def test_a_refused_flag_ends_the_command_with_one_line() -> None:
    result = call("serve", "M", "--kv-cache-dtype", "fp8")
    assert result.returncode == 2
    assert re.fullmatch(r"baton: --kv-cache-dtype fp8 is not served\. [^\n]+\n", result.stderr)


def test_entries_of_a_file_are_judged_as_flags_are(tmp_path: Any) -> None:
    file = tmp_path / "vllm.yaml"
    file.write_text("model: a/b\ntensor-parallel-size: 1\nmax_model_len: 8k\nshutdown-timeout: 4\n")
    settings = shown("--config", str(file))
    assert (settings["model"], settings["max-model-len"], settings["drain-s"]) == ("a/b", 8000, 4.0)
    file.write_text("tensor-parallel-size: 2\n")
    with pytest.raises(UnsupportedFeature, match=r"tensor_parallel_size: 2 is not served\. One worker runs on one GPU"):
        shown("--config", str(file))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        *(([name], says) for name, says in vllm_table.COMMANDS.items()),
        *((["bench", name], says) for name, says in vllm_table.BENCH_COMMANDS.items()),
    ],
)
def test_a_command_of_vllm_without_a_twin_says_what_stands_for_it(words: list[str], says: str) -> None:
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, UnsupportedFeature)
    assert str(result.exception) == f"{words[-1]} is not served. {says}"


def test_a_server_says_of_vllms_variables_that_it_does_not_read_them() -> None:
    result = call("serve", "--port", "0", VLLM_API_KEY="secret", VLLM_USE_V1="1")
    assert result.stderr.startswith("baton: VLLM_API_KEY, VLLM_USE_V1 in the environment: vLLM's, and not read here.")
    assert "secret" not in result.stderr


def test_a_misspelt_flag_is_told_the_right_one() -> None:
    result = CliRunner().invoke(app, ["up", "--gpu-memory-utilisation", "0.5"])
    assert "Possible options: --gpu-memory-utilization" in result.stderr


# -- what a service would start with --------------------------------------------------------------------------


def test_settings_are_shown_with_where_they_come_from_and_without_secrets(tmp_path: Any) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("port: 9\n")
    environment = {"BATON_API_KEY": "a-key-of-some-length", "BATON_HOST": "127.0.0.2"}
    command = ["config", "show", "router", "--config", str(file), "--max-streams", "5"]
    text = CliRunner().invoke(app, command, env=environment).stdout
    assert "port: 9  # file\n" in text
    assert "host: 127.0.0.2  # environment\n" in text
    assert "max-streams: 5  # flag\n" in text
    assert "# api-key is set, and not shown\n" in text
    assert "a-key" not in text


def test_what_is_shown_is_a_file_that_starts_the_same_service(tmp_path: Any) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(CliRunner().invoke(app, ["config", "show", "a/b", "--dtype", "half", "--prefill", "2"]).stdout)
    assert shown("--config", str(file)) == shown("a/b", "--dtype", "half", "--prefill", "2")


def test_settings_with_which_a_service_would_not_start_are_refused() -> None:
    with pytest.raises(ConfigError, match="block_size=3 is not valid"):
        shown("--block-size", "3")
