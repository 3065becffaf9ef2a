"""vLLM's names, and what each is here, from the table in the code."""

from __future__ import annotations

from docs.markdown import rows

from baton.vllm_names import ARGUMENTS, BENCH, CALLS, EMPTY, FLAGS, METHODS, SAMPLING, Name
from baton.vllm_table import IMPORTS, ROUTES


def vllm_table(name: str) -> str:
    """Return a table of vLLM's names: each sentence of the table in the code, with its names."""
    if name in ("routes", "imports"):
        groups = {"routes": ROUTES, "imports": IMPORTS}[name]
        return rows(
            ("not here", ""), ((", ".join(f"`{each}`" for each in names.split()), says) for says, names in groups)
        )
    python = {"arguments": ARGUMENTS, "calls": CALLS, "sampling": SAMPLING, "methods": METHODS}
    table = ({"flags": FLAGS, "bench": BENCH} | python)[name]
    said: dict[str, tuple[list[str], list[str]]] = {}
    for each in table.values():
        if name == "arguments" and FLAGS.get(each.name) == each:
            continue  # it stands in the table of flags
        if each.kind == "taken" and each.ours == each.name:
            says = "Taken, under the same name."
        else:
            says = f"Taken, as `{each.ours}`." if each.kind == "taken" else each.says
        neutral, refused = said.setdefault(says, ([], []))
        (refused if each.kind == "refused" else neutral).append(_shown(name, each))
    lines = [(says, ", ".join(neutral), ", ".join(refused)) for says, (neutral, refused) in said.items()]
    return rows(("here", "taken", "refused, unless"), lines)


def _shown(table: str, name: Name) -> str:
    shown = f"--{name.name.replace('_', '-')}" if table in ("flags", "bench") else name.name
    values = sorted(name.values - EMPTY)
    return f"`{shown}`" + (f" ({' or '.join(values)})" if values and name.kind == "refused" else "")
