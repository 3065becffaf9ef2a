"""Where results go: one file of several servers and rates under the same load, or vLLM's form, a file a rate."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from baton.bench.serve import Served
from baton.bench.serve_result import Result
from baton.errors import ConfigError

Runs = dict[str, list[dict[str, Any]]]
"""By server, the figures at each rate."""


class ServeFile:
    """The runs so far. With a file, those of earlier commands under the same load too, so that servers that cannot run at
    the same time come into one table.
    """

    def __init__(self, file: Path | None, load: Mapping[str, Any]) -> None:
        """Take `load`, what all runs have in common.

        Raises:
            ConfigError: the file is of another load, or none of ours.
        """
        self._file = file
        self._whole: dict[str, Any] = {"load": dict(load), "servers": {}}
        if file is not None and file.exists():
            self._whole = _read(file)
            if self._whole["load"] != json.loads(json.dumps(load)):
                other = {name for name, value in load.items() if self._whole["load"].get(name) != _plain(value)}
                raise ConfigError(
                    f"out={str(file)!r} has runs of another load: {', '.join(sorted(other))} differ. Name another file."
                )

    @property
    def runs(self) -> Runs:
        """Return all runs, in the order of their rates."""
        servers = self._whole["servers"]
        return {label: sorted(of["runs"], key=lambda run: float(run["rate"])) for label, of in servers.items()}

    def add(self, served: Served, result: Result) -> None:
        """Add a run, in place of an earlier one of that server at that rate; write the file, if there is one."""
        server = served.server
        rate = "inf" if math.isinf(result.load.rate) else result.load.rate
        fresh = {"url": server.url, "model": served.model, "runs": []}
        entry = self._whole["servers"].setdefault(server.label, fresh)
        entry["runs"] = [run for run in entry["runs"] if run["rate"] != rate]
        entry["runs"].append({"rate": rate, "name": result.load.name, **result.numbers()})
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(json.dumps(self._whole, indent=1) + "\n")


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _read(file: Path) -> dict[str, Any]:
    try:
        whole = json.loads(file.read_text())
        if isinstance(whole["load"], dict) and isinstance(whole["servers"], dict):
            return dict(whole)
    except (OSError, ValueError, LookupError, TypeError):
        pass
    raise ConfigError(f"out={str(file)!r} is there, and holds no runs of `baton bench serve`. Name another file.")


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmFiles:
    """A file a rate, each as `vllm bench serve --save-result` writes it."""

    folder: Path = Path()
    name: str | None = None
    """None: made of rate, model and time."""
    detailed: bool = False

    def save(self, results: Sequence[tuple[Served, Result]], seed: str) -> None:
        """Write them."""
        now = datetime.now()
        self.folder.mkdir(parents=True, exist_ok=True)
        for i, (served, result) in enumerate(results):
            whole = result.vllm_form(served.model, max_concurrency=served.server.max_concurrency, seed=seed, now=now)
            rate = whole["request_rate"]
            name = self.name or f"{served.server.label}-{rate}qps-{served.model.split('/')[-1]}-{whole['date']}.json"
            if self.name and len(results) > 1:
                name = f"{Path(name).stem}-{i}{Path(name).suffix}"
            whole |= result.details() if self.detailed else {}
            (self.folder / name).write_text(json.dumps(whole))
            print(f"wrote {self.folder / name}", file=sys.stderr)
