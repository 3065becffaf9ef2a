"""The processes of `baton up`: one log view with coloured prefixes, each kept running, an ordered end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from baton.keeper import keep

WRONG_CONFIG = 2
"""The status of a child that a restart would not help."""
_COLOURS = (36, 33, 35, 32, 34, 31)
_MAX_LINE = 1 << 20


class ChildFailed(Exception):
    """A child that cannot run as it is configured."""


@dataclass(slots=True, eq=False)
class Child:
    """One process to keep running."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_s: float = 60.0
    """How long it may take to end after SIGTERM."""
    process: asyncio.subprocess.Process | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Supervisor:
    """Starts children and restarts those that die."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._children: list[Child] = []
        self._quiet = quiet
        self._in_colour = sys.stderr.isatty()
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Holds the reason once a child cannot be kept."""

    def start(self, child: Child) -> None:
        """Start a child, and keep it."""
        self._children.append(child)
        child.task = asyncio.create_task(self._keep(child))

    async def stop(self, child: Child) -> None:
        """End a child: SIGTERM, and SIGKILL if that does not help."""
        child.stopping.set()
        process = child.process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), child.stop_s)
            except TimeoutError:
                self.say("up", f"{child.name} does not end; it is killed")
                kill(child)
        if child.task is not None:
            child.task.cancel()
            await asyncio.gather(child.task, return_exceptions=True)

    def kill_all(self) -> None:
        """End every child at once."""
        for child in self._children:
            child.stopping.set()
            kill(child)

    def say(self, name: str, line: str) -> None:
        """Print one line under a name."""
        width = max((len(child.name) for child in self._children), default=8)
        prefix = f"{name:<{width}} |"
        if self._in_colour:
            names = [child.name for child in self._children]
            colour = _COLOURS[names.index(name) % len(_COLOURS)] if name in names else 37
            prefix = f"\x1b[{colour}m{prefix}\x1b[0m"
        print(f"{prefix} {line}", file=sys.stderr, flush=True)

    async def _keep(self, child: Child) -> None:
        def on_death(status: int, delay_s: float) -> None:
            self.say("up", f"{child.name} ended with status {status}; it starts again in {delay_s:g} s")

        try:
            status = await keep(
                lambda: self._run(child),
                until=child.stopping,
                is_last=lambda status: status == WRONG_CONFIG,
                on_death=on_death,
            )
        except OSError as error:
            self._fail(f"{child.name} cannot be started: {error}")
            return
        if status == WRONG_CONFIG and not child.stopping.is_set():
            self._fail(f"{child.name} cannot run as it is configured; see its last line above.")

    async def _run(self, child: Child) -> int:
        process = child.process = await asyncio.create_subprocess_exec(
            *child.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **child.environment},
            start_new_session=True,  # the terminal's Ctrl-C is ours, to end them in order
            limit=_MAX_LINE,
        )
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:
                continue  # a line without end: it is dropped
            if not line:
                break
            if not self._quiet:
                self.say(child.name, _readable(line.decode(errors="replace").rstrip()))
        return await process.wait()

    def _fail(self, reason: str) -> None:
        if not self.failure.done():
            self.failure.set_exception(ChildFailed(reason))


def kill(child: Child) -> None:
    """End a child and what it started, at once."""
    if child.process is not None and child.process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.process.pid, signal.SIGKILL)


def _readable(line: str) -> str:
    """A log line of ours, which is JSON where no terminal is, as people read it."""
    if not line.startswith("{"):
        return line
    try:
        event = json.loads(line)
        what = event.pop("event")
    except (ValueError, KeyError):
        return line
    for name in ("service", "timestamp", "part"):
        event.pop(name, None)
    level = event.pop("level", "info")
    trace = event.pop("exception", "")
    facts = " ".join(f"{name}={value}" for name, value in event.items())
    shown = f"{what} {facts}".rstrip() if level in ("info", "debug") else f"{level.upper()} {what} {facts}".rstrip()
    return f"{shown}\n{trace}" if trace else shown
