"""One thing that `baton doctor` looked at: what was found, whether it is well, and the way out where it is not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "note", "broken"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Short, for a person."""

    level: Level
    """A note costs speed or a feature; what is broken keeps Baton from serving here."""
    subject: str
    text: str
    way_out: str = ""

    def line(self) -> str:
        """Write it."""
        mark = {"ok": "  ", "note": "! ", "broken": "X "}[self.level]
        return f"{mark}{self.subject:<10} {self.text}" + (f" {self.way_out}" if self.way_out else "")

    def as_json(self) -> dict[str, Any]:
        """Return what a program reads."""
        return asdict(self)
