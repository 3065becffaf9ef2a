"""Documents say what the code does: tables are current, links lead somewhere, commands exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import msgspec
import pytest
import typer.main
from docs import api_tables, generate, python_tables
from docs.api_words import WORDS

from baton.cli import app
from baton.protocol import SamplingParams
from baton.requests.chat import ChatRequest

_FOLDERS = ("", "docs/", "docs/decisions/", "compose/", "kernels/", "services/*/", "shared/baton/worker/")
PAGES = sorted(page for folder in _FOLDERS for page in generate.ROOT.glob(f"{folder}*.md"))
LINK = re.compile(r"\[[^\]]*\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)")
COMMAND = re.compile(r"(?:^|`|\$ )baton ([a-z][a-z-]*(?: [a-z]+)?)((?: [^`\n#]*)?)", re.MULTILINE)


def test_what_is_made_from_the_code_is_current() -> None:
    pytest.importorskip("helm_python", reason="Helm's engine is packaged for Linux on x86-64 only")
    assert [str(path.relative_to(generate.ROOT)) for path in generate.stale()] == [], "run `make docs`"


def test_every_field_of_the_api_is_described() -> None:
    unsaid = [f"{model}.{name}" for model, name in api_tables.described_fields() if not api_tables.words(model, name)]
    params = [field.name for field in msgspec.structs.fields(SamplingParams) if field.name != "bad_words_ids"]
    unsaid += [f"SamplingParams.{name}" for name in params if not python_tables.sampling_words(name)]
    assert unsaid == [], "say what they mean in docs/api_words.py"


def test_no_field_is_described_that_is_not_there() -> None:
    fields = list(api_tables.described_fields())
    fields += [("SamplingParams", field.name) for field in msgspec.structs.fields(SamplingParams)]
    known = {name for _, name in fields} | {f"{model}.{name}" for model, name in fields}
    assert sorted(WORDS.keys() - known) == []


@cache
def said() -> str:
    """Every text that stands in the code, pieces of formatted ones apart."""
    folders = ("compose", "shared", "kernels", "services")
    files = [file for folder in folders for file in (generate.ROOT / folder).rglob("*.py")]
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    return "\0".join(n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str))


def test_messages_that_troubleshooting_quotes_are_those_of_the_code() -> None:
    page = (generate.ROOT / "docs/troubleshooting.md").read_text()
    symptoms = [line.split("|")[1] for line in page.splitlines() if line.startswith("| ")]
    quoted = [words for symptom in symptoms for words in re.findall(r"`([^`]+)`", symptom)]
    pieces = [piece for words in quoted if " " in words for piece in words.split("…") if piece.strip()]
    assert len(pieces) > 10
    assert [piece for piece in pieces if piece not in said()] == []


@cache
def files() -> list[str]:
    folders = ("compose", "demo", "deploy", "docs", "kernels", "services", "shared", "tests")
    paths = (path for folder in folders for path in (generate.ROOT / folder).rglob("*.py"))
    return [f"/{path.relative_to(generate.ROOT)}" for path in paths]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(generate.ROOT)))
def test_files_that_pages_name_are_there(page: Path) -> None:
    named = re.findall(r"`((?:[\w-]+/)*[\w-]+\.py)`", page.read_text())
    assert [name for name in named if not any(path.endswith(f"/{name}") for path in files())] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(generate.ROOT)))
def test_examples_can_be_read(page: Path) -> None:
    for example in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        ast.parse(example)
    for body in re.findall(r"-d '(\{.*?\})'", page.read_text(), re.DOTALL):
        ChatRequest.model_validate_json(body)


WRAPPED = [page for page in PAGES if page.name != "CHANGELOG.md"]


@pytest.mark.parametrize("page", WRAPPED, ids=lambda page: str(page.relative_to(generate.ROOT)))
def test_lines_are_wrapped(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"!?\[[^\]]*\]\([^)]*\)|`[^`\n]*`", "", prose)  # what cannot be broken
    no_prose = ("|", "<!--", "    ")
    assert [line for line in prose.splitlines() if len(line) > 120 and not line.startswith(no_prose)] == []


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(generate.ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text()):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(generate.ROOT)))
def test_commands_and_flags_exist(page: Path) -> None:
    group = typer.main.get_command(app)
    context = group.make_context("baton", ["--help"], resilient_parsing=True)
    for name, rest in COMMAND.findall(page.read_text()):
        command = group.get_command(context, name.split()[0])  # type: ignore[attr-defined]
        assert command is not None, name
        if hasattr(command, "commands"):
            _, _, second = name.partition(" ")
            command = command.commands.get(second, command)
            assert not second or command.name == second, name
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        known.add("--help")
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest):
            assert flag in known, f"baton {name} {flag}"
