"""Markdown tables, and how values of settings are shown in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def rows(head: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> str:
    """Return a table."""
    written = [head, ("---",) * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in written)


def default(value: Any) -> str:
    """Show a setting's default."""
    if value is None or value == "" or value in ((), []):
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return " ".join(default(each) for each in value)
    if isinstance(value, int) and value >= 100_000:
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)
