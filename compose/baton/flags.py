"""Command-line flags from settings' dataclasses: name, type, default and help text stand once, at the field.

A command takes settings as parameters of their dataclass; `with_flags` shows one flag a field instead. The order of
precedence is YAML file (--config) < environment (BATON_X_FILE, a file with the value, as secrets come; then BATON_X) < flag.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from baton.config import AUTO_LEN
from baton.errors import ConfigError
from baton.flag_groups import group_of
from baton.spelling import judged_file


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Show each field of the command's dataclass parameters as a flag; call it with dataclasses made from them."""
    hints = get_type_hints(command, include_extras=True)
    settings: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    flags: dict[str, inspect.Parameter] = {}
    for kind in settings.values():
        for name, flag in _flags(kind).items():
            flags.setdefault(name, flag)
    own = {
        name: parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(command).parameters.items()
        if name not in settings
    }
    file = typer.Option(
        *("--config",),
        help="YAML file of flags, without their dashes",
        is_eager=True,
        callback=_read_files,
        rich_help_panel=group_of("config_file"),
    )
    parameters = [*(flags | own).values(), _keyword("config_file", None, Annotated[Path | None, file])]

    def make(given: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: kind(**{f.name: _value(f, given[f.name]) for f in dataclasses.fields(kind)})
            for name, kind in settings.items()
        }

    def run(**given: Any) -> None:
        command(**make(given), **{name: given[name] for name in own if name not in flags})

    run.make = make  # type: ignore[attr-defined]

    run.__doc__ = command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def came_from(context: Any, name: str) -> str:
    """Return where a parameter's value is from: flag, environment, file, or nothing for its default."""
    source = context.get_parameter_source(name)
    return {"COMMANDLINE": "flag", "ENVIRONMENT": "environment", "DEFAULT_MAP": "file"}.get(source.name, "")


def as_arguments(settings: Any) -> list[str]:
    """Flags that make these settings again; fields at their defaults are left out."""
    fields = dataclasses.fields(settings)
    # a list that was emptied has no entry to name, so it is given as JSON
    return to_flags(
        **{f.name: "[]" if value == () else value for f in fields if (value := getattr(settings, f.name)) != f.default}
    )


def to_flags(**values: Any) -> list[str]:
    """Flags with these values: a tuple's entries one by one; None is left out."""
    arguments: list[str] = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            arguments.append(flag if value else f"--no-{flag[2:]}")
        elif value is not None:
            entries = value if isinstance(value, tuple) else (value,)
            arguments += [part for entry in entries for part in (flag, str(entry))]
    return arguments


def _flags(kind: Any) -> dict[str, inspect.Parameter]:
    hints, flags = get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        hint: Any = hints[field.name]
        default: Any = field.default
        if get_origin(hint) is tuple:
            hint, default = list[get_args(hint)[0]], list(default) or None  # type: ignore[misc]
        number = None if {int, float} & {*get_args(hint), hint} != {int} else _count
        option = typer.Option(
            help=field.metadata["help"],
            envvar=f"BATON_{field.name.upper()}",
            rich_help_panel=group_of(field.name),
            parser=_length if field.name == "max_model_len" else number,
            metavar="<int>" if number else _metavar(hint),
        )
        flags[field.name] = _keyword(field.name, default, Annotated[hint, option])
    return flags


def _metavar(hint: Any) -> str | None:
    return f"<{get_args(hint)[0].__name__}>..." if get_origin(hint) is list else None


def _count(text: str | int) -> int:
    """Read a whole number as vLLM's users write it: 8k is 8,000, 8K is 8,192; so with m, g and t."""
    match = re.fullmatch(r"(-?\d+(?:\.\d+)?)([kmgt]?)", str(text).strip(), re.IGNORECASE)
    unit = match[2] if match else ""
    value = float(match[1]) * (1024 if unit.isupper() else 1000) ** " kmgt".index(unit.lower() or " ") if match else 0.5
    if not value.is_integer():
        raise typer.BadParameter(f"{text!r} is no whole number, such as 8192, 8k (8,000) or 8K (8,192).")
    return int(value)


def _length(text: str | int) -> int:
    return AUTO_LEN if str(text).lower() == "auto" else _count(text)


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _read_files(context: typer.Context, file: Path | None) -> Path | None:
    """Make the entries of the YAML file, and what files the environment names, the defaults of the flags."""
    known = {str(parameter.name): parameter for parameter in context.command.params}
    named = {} if file is None else judged_file(_read_config(file), known)
    for name in named:
        if name not in known:
            raise ConfigError(f"--config {file}: there is no flag --{name.replace('_', '-')}.")
    for name, parameter in known.items():
        variable = f"BATON_{name.upper()}_FILE"
        if os.environ.get(variable) and not os.environ.get(f"BATON_{name.upper()}"):
            value = _read_value(variable, os.environ[variable])
            named[name] = value.split() if getattr(parameter, "multiple", False) else value
    context.default_map = {**(context.default_map or {}), **named}
    return file


def _read_config(file: Path) -> dict[str, Any]:
    import yaml

    try:
        entries = yaml.safe_load(file.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {file}: {error}") from None
    if not isinstance(entries, dict):
        raise ConfigError(f"--config {file}: it must be a mapping of flags to values.")
    return {str(key).replace("-", "_"): value for key, value in entries.items()}


def _read_value(variable: str, file: str) -> str:
    reason = "is empty"
    try:
        if value := Path(file).read_text().strip():
            return value
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        reason = "cannot be read: it is no text"
    raise ConfigError(f"{variable}={file} {reason}. `baton secrets FOLDER` makes the secrets.")


def _value(field: dataclasses.Field[Any], given: Any) -> Any:
    """Return what a dataclass takes for what click gave: lists are its tuples, and no list is the default."""
    if isinstance(field.default, tuple):
        return tuple(given) if given else field.default
    return given
