"""`baton config show`: the settings of a service as it would start, in YAML that `--config` takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from baton.config_secrets import SECRETS
from baton.flags import came_from


def settings_of(command: Any, arguments: Sequence[str]) -> str:
    """Return a line a setting, with a comment where it is not the default; secrets are not shown.

    Raises:
        ConfigError: the service would not start with them.
    """
    context = command.make_context(command.name, list(arguments))
    command.callback.make(context.params)
    lines = []
    for parameter in command.params:
        name, value = str(parameter.name), context.params.get(parameter.name)
        if parameter.param_type_name == "argument" or name in ("config_file", "help_all"):
            continue
        if name == "model":
            value = context.params.get("model_tag") or value
        if name in SECRETS and value:
            lines.append(f"# {name.replace('_', '-')} is set, and not shown")
            continue
        source = came_from(context, name)
        entry = yaml.safe_dump({name.replace("_", "-"): value}, default_flow_style=True, width=10_000).strip()[1:-1]
        lines.append(f"{entry}  # {source}" if source else entry)
    return "\n".join(lines)
