"""What several processes say, as one log: lines with a coloured name before each, or JSON that is all JSON."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from baton.logs import LogConfig, shows_colours

_COLOURS = (36, 33, 35, 32, 34, 31)
_OURS = 37
_HIDDEN = ("service", "timestamp", "part")
"""Fields of an event that its line has already, or that only machines want."""


class LogView:
    """Writes to standard error; a terminal that is gone is no error, since its hang-up ends us in order."""

    def __init__(self, config: LogConfig) -> None:
        self._is_json = config.log_format == "json"
        self._names: list[str] = []
        self._told: set[str] = set()
        """Reasons for which a process ended: those of its siblings are often the same."""

    def add(self, names: Sequence[str]) -> None:
        """Take in the names of processes, for their colours and the width of the column."""
        self._names += names

    def say(self, name: str, text: str, level: str = "info") -> None:
        """Show a line that is no event."""
        self._show(name, {"event": text, "level": level})

    def take(self, name: str, line: str) -> None:
        """Show a line that a process wrote: an event of ours as JSON, or anything."""
        event = _event_of(line)
        if event is None:
            self._write(name, line) if not self._is_json else self.say(name, line)
        elif event.get("level") != "critical" or event["event"] not in self._told:
            if event.get("level") == "critical":
                self._told.add(event["event"])
            self._show(name, event)

    def answer(self, text: str) -> None:
        """Print what is to be copied, to standard output."""
        try:
            print(text, flush=True)
        except OSError:
            # else Python writes it again at its end, and fails
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _show(self, name: str, event: dict[str, Any]) -> None:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        if self._is_json:
            self._print(json.dumps({"timestamp": now, "service": name, **event}))
        else:
            self._write(name, _readable({"timestamp": now, **event}))

    def _write(self, name: str, text: str) -> None:
        prefix = f"{name:<{max(map(len, self._names), default=8)}} |"
        if shows_colours():
            colour = _COLOURS[self._names.index(name) % len(_COLOURS)] if name in self._names else _OURS
            prefix = f"\x1b[{colour}m{prefix}\x1b[0m"
        self._print(f"{prefix} {text}")

    def _print(self, line: str) -> None:
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)


def _event_of(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    with contextlib.suppress(ValueError):
        event = json.loads(line)
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            return event
    return None


def _readable(event: dict[str, Any]) -> str:
    """An event as people read it: when by this machine's clock, what, and its facts."""
    at = ""
    with contextlib.suppress(ValueError, TypeError):
        at = datetime.fromisoformat(event["timestamp"]).astimezone().strftime("%H:%M:%S ")
    level, trace = str(event.get("level", "info")).upper(), event.get("exception", "")
    facts = [f"{k}={v}" for k, v in event.items() if k not in (*_HIDDEN, "event", "level", "exception")]
    return " ".join((f"{at}{level:<7}", event["event"], *facts)) + (f"\n{trace}" if trace else "")
