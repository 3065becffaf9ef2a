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
from functools import partial

from baton.keeper import keep
from baton.tied import tied

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
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    """All of it."""
    stop_s: float = 60.0
    """How long it may take to end after SIGTERM."""
    process: asyncio.subprocess.Process | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Supervisor:
    """Starts children and restarts those that die."""

    def __init__(self) -> None:
        self._children: list[Child] = []
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
        names = [child.name for child in self._children]
        prefix = f"{name:<{max(map(len, names), default=8)}} |"
        if sys.stderr.isatty():
            colour = _COLOURS[names.index(name) % len(_COLOURS)] if name in names else 37
            prefix = f"\x1b[{colour}m{prefix}\x1b[0m"
        with contextlib.suppress(OSError):  # the terminal is gone, and its hang-up ends us in order
            print(f"{prefix} {line}", file=sys.stderr, flush=True)

    async def _keep(self, child: Child) -> None:
        def on_death(status: int, delay_s: float) -> None:
            self.say("up", f"{child.name} ended with status {status}; it starts again in {delay_s:g} s")

        run, stopping = partial(self._run, child), child.stopping
        failure = ""
        try:
            status = await keep(run, until=stopping, is_last=lambda status: status == WRONG_CONFIG, on_death=on_death)
            if status == WRONG_CONFIG and not stopping.is_set():
                failure = f"{child.name} cannot run as it is configured; see its last line above."
        except OSError as error:
            failure = f"{child.name} cannot be started: {error}"
        if failure and not self.failure.done():
            self.failure.set_exception(ChildFailed(failure))

    async def _run(self, child: Child) -> int:
        process = child.process = await asyncio.create_subprocess_exec(
            *tied(child.command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=child.environment,
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
            self.say(child.name, _readable(line.decode(errors="replace").rstrip()))
        return await process.wait()


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
        words = [str(event.pop("event"))]
    except (ValueError, KeyError):
        return line
    level, trace = event.pop("level", "info"), event.pop("exception", "")
    if level not in ("info", "debug"):
        words.insert(0, level.upper())
    words += [f"{name}={value}" for name, value in event.items() if name not in ("service", "timestamp", "part")]
    return " ".join(words) + (f"\n{trace}" if trace else "")
