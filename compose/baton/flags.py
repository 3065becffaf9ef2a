"""Command-line flags from settings' dataclasses: name, type, default and help text stand once, at the field.

A command takes settings as parameters of their dataclass; `with_flags` shows one flag a field instead. The order of
precedence is YAML file (--config) < environment (BATON_X_FILE, a file with the value, as secrets come; then BATON_X) < flag.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from baton.errors import ConfigError


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Show each field of the command's dataclass parameters as a flag; call it with dataclasses made from them."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    settings: dict[str, Any] = {}
    named = {name for name, hint in hints.items() if not dataclasses.is_dataclass(hint)}
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if dataclasses.is_dataclass(hint):
            settings[parameter.name] = hint
            parameters += _flags(hint, named | {p.name for p in parameters})
        else:
            parameters.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))
    parameters.append(_config_flag())

    @functools.wraps(command)
    def run(**given: Any) -> None:
        given.pop("config_file")
        values = {
            name: kind(**{f.name: _value(f, given[f.name]) for f in dataclasses.fields(kind)})
            for name, kind in settings.items()
        }
        taken = {f.name for kind in settings.values() for f in dataclasses.fields(kind)}
        own = {name: value for name, value in given.items() if name not in taken}
        command(**values, **own)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    del run.__wrapped__
    return run


def as_arguments(settings: Any) -> list[str]:
    """Flags that make these settings again; fields at their defaults are left out."""
    fields = dataclasses.fields(settings)
    return to_flags(**{f.name: value for f in fields if (value := getattr(settings, f.name)) != f.default})


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


def _flags(kind: Any, taken: set[str]) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name in taken:
            continue
        hint: Any = hints[field.name]
        default: Any = field.default
        if get_origin(hint) is tuple:
            hint, default = list[get_args(hint)[0]], list(default) or None  # type: ignore[misc]
        option = typer.Option(help=field.metadata["help"], envvar=f"BATON_{field.name.upper()}", show_envvar=False)
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, option]
        )


def _config_flag() -> inspect.Parameter:
    option = typer.Option(
        "--config", help="YAML file of flags, without their dashes", is_eager=True, callback=_read_files
    )
    return inspect.Parameter(
        "config_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, option]
    )


def _read_files(context: typer.Context, file: Path | None) -> Path | None:
    """Make the entries of the YAML file, and what files the environment names, the defaults of the flags."""
    known = {str(parameter.name): parameter for parameter in context.command.params}
    named = {} if file is None else _read_config(file)
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
    try:
        value = Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(
            f"{variable}={file} cannot be read: {reason}. `baton secrets FOLDER` makes the secrets."
        ) from None
    if not value:
        raise ConfigError(f"{variable}={file} is empty. `baton secrets FOLDER` makes the secrets.")
    return value


def _value(field: dataclasses.Field[Any], given: Any) -> Any:
    """Return what a dataclass takes for what click gave: lists are its tuples, and no list is the default."""
    if isinstance(field.default, tuple):
        return tuple(given) if given else field.default
    return given
