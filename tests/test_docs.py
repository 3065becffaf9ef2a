"""Documents say what the code does: tables are current, links lead somewhere, commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main
from docs import generate

from baton.cli import app

PAGES = sorted(
    [*generate.ROOT.glob("*.md"), *generate.ROOT.glob("docs/*.md"), *generate.ROOT.glob("services/*/README.md")]
)
LINK = re.compile(r"\[[^\]]*\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)")
COMMAND = re.compile(r"(?:^|`|\$ )baton ([a-z-]+(?: [a-z]+)?)((?: [^`\n#]*)?)", re.MULTILINE)


def test_what_is_made_from_the_code_is_current() -> None:
    pytest.importorskip("helm_python", reason="Helm's engine is packaged for Linux on x86-64 only")
    assert [str(path.relative_to(generate.ROOT)) for path in generate.stale()] == [], "run `make docs`"


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
