"""How far something long has come: a bar on a terminal; elsewhere, in logs, a line every few seconds."""

from __future__ import annotations

import io
import sys
import time
from typing import Any

import structlog
from tqdm import tqdm

from baton.logs import get_logger

EVERY_S = 5.0
"""Between two lines of one bar."""


def tell(line: str) -> None:
    """Say something on the way to readiness: as an event of the log, where there is one, else on standard error."""
    if structlog.is_configured():
        get_logger("start").info(line)
    else:
        print(line, file=sys.stderr, flush=True)


class Bar(tqdm):  # type: ignore[type-arg]
    """A `tqdm` that can be read in a log too."""

    tells_end = True
    """Whether a short one has a line of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._is_drawn = sys.stderr.isatty()
        self._told_at = time.monotonic()
        self._has_told = False
        super().__init__(*args, **kwargs | {"file": sys.stderr if self._is_drawn else io.StringIO()})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw the bar, or say how far it is if that was not said lately."""
        if self._is_drawn:
            super().display(msg, pos)
        elif time.monotonic() - self._told_at >= EVERY_S:
            self._tell()

    def close(self) -> None:
        """End it, with a last line."""
        if not self.disable and not self._is_drawn and self.n and (self._has_told or self.tells_end):
            self._tell()
        super().close()

    def _tell(self) -> None:
        self._told_at, self._has_told = time.monotonic(), True
        how_far = "{desc}: {percentage:.0f} %, " if self.total else "{desc}: "
        form = how_far + "{n_fmt} of {total_fmt} in {elapsed}, {rate_fmt}"
        facts: dict[str, Any] = {**self.format_dict, "bar_format": form, "prefix": self.desc.removesuffix(": ")}
        tell(self.format_meter(**facts))


class LongBar(Bar):
    """Of what is short, a log says nothing: a download of nothing, say."""

    tells_end = False
