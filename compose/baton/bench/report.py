"""One table on the terminal, the same rows as JSON."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


@dataclass(slots=True)
class Report:
    """Rows of one benchmark; every row has the same columns."""

    title: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, **row: Any) -> None:
        """Add a row; None shows as a dash."""
        self.rows.append(row)

    def show(self, json_file: Path | None = None) -> None:
        """Print the table, and write the rows and the machine's facts where asked."""
        facts = {**_machine(), **self.facts}
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        table = Table(title=self.title, caption=", ".join(f"{k} {v}" for k, v in facts.items()))
        for name in columns:
            is_text = all(isinstance(row.get(name), (str, type(None))) for row in self.rows)
            table.add_column(name.replace("_", " "), justify="left" if is_text else "right")
        for row in self.rows:
            table.add_row(*(_cell(row.get(name)) for name in columns))
        # wide enough to stay whole in a log file, where no terminal says its width
        Console(width=None if Console().is_terminal else 160).print(table)
        if json_file is not None:
            json_file.write_text(json.dumps({"title": self.title, "facts": facts, "rows": self.rows}, indent=1))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def _machine() -> dict[str, Any]:
    has_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if has_gpu else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
