"""The command line's reference, and the variables that stand for flags, from the commands themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import typer.main
from docs.markdown import default, rows

from baton.cli import app
from baton.config import EngineConfig

_ENGINE = frozenset(field.name for field in dataclasses.fields(EngineConfig))


def commands() -> str:
    """Return a section for each command, and one of the engine's flags, which several of them take."""
    sections: list[str] = []
    engine: dict[str, Any] = {}
    named: dict[str, str] = {}
    for name, command in _commands():
        options = [p for p in command.params if p.name != "help"]
        theirs = {p.name: p for p in options if p.name in _ENGINE and p.param_type_name == "option"}
        takes_engine = len(theirs) > len(_ENGINE) // 2
        if takes_engine:
            engine |= theirs
            options = [p for p in options if p.name not in theirs]
        also = ["With [the engine's flags](#the-engines-flags)."] if takes_engine else []
        table = [_table(options)] if options else []
        text = "\n\n".join([_about(command), *also, *table])
        same = named.setdefault(text, name)
        sections.append(f"## `{name}`\n\n{text if same == name else f'The same as `{same}`.'}")
    about = "Of every command that runs an engine. Names are vLLM's where vLLM has them."
    return "\n\n".join([*sections, f"## The engine's flags\n\n{about}\n\n{_table(list(engine.values()))}"])


def environment() -> str:
    """Return each variable with who reads it, once for each meaning that it has."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, command in _commands():
        for parameter in command.params:
            for variable in _variables(parameter):
                found.setdefault((variable, _help(parameter)), []).append(f"`{name.removeprefix('baton ')}`")
    lines = [(f"`{variable}`", ", ".join(names), says) for (variable, says), names in sorted(found.items())]
    return rows(("variable", "read by `baton`", ""), lines)


def _commands() -> Iterator[tuple[str, Any]]:
    """Return each command with its whole name, in the order of `baton --help`."""
    root: Any = typer.main.get_command(app)
    yield from _below("baton", root)


def _below(name: str, group: Any) -> Iterator[tuple[str, Any]]:
    for each, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from _below(f"{name} {each}", command)
        else:
            yield f"{name} {each}", command


def _about(command: Any) -> str:
    return " ".join((command.help or "").split("\n\n")[0].split())


def _table(parameters: list[Any]) -> str:
    lines = [(_shown(p), default(p.default) if p.param_type_name == "option" else "", _help(p)) for p in parameters]
    return rows(("flag", "default", ""), lines)


def _shown(parameter: Any) -> str:
    """Return `--[no-]flag`, `--flag`, or an argument's name in capitals."""
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or str(parameter.name).upper()}`"
    first = max(parameter.opts, key=len)
    if any(other == f"--no-{first.removeprefix('--')}" for other in parameter.secondary_opts):
        return f"`--[no-]{first.removeprefix('--')}`"
    return ", ".join(f"`{opt}`" for opt in sorted(parameter.opts, key=len, reverse=True))


def _help(parameter: Any) -> str:
    """Return a parameter's help, with its choices where that does not name them."""
    text = parameter.help or ""
    hint = parameter.type_descriptor.annotation
    choices = [str(choice) for choice in get_args(hint)] if get_origin(hint) is Literal else []
    return text if all(choice in text for choice in choices) else f"{text} ({', '.join(choices)})"


def _variables(parameter: Any) -> list[str]:
    named = parameter.envvar
    return [named] if isinstance(named, str) else list(named or ())
