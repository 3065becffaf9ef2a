"""The processes of `baton up`: one log view with coloured prefixes, each kept running, an ordered end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from baton.keeper import keep
from baton.log_view import LogView
from baton.tied import tied

WRONG_CONFIG = 2
"""The status of a child that a restart would not help."""
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

    def __init__(self, view: LogView) -> None:
        self._view = view
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
                self._view.say("up", f"{child.name} does not end; it is killed", "warning")
                kill(child)
        if child.task is not None:
            child.task.cancel()
            await asyncio.gather(child.task, return_exceptions=True)

    def kill_all(self) -> None:
        """End every child at once."""
        for child in self._children:
            child.stopping.set()
            kill(child)

    async def _keep(self, child: Child) -> None:
        def on_death(status: int, delay_s: float) -> None:
            self._view.say("up", f"{child.name} ended with status {status}; it starts again in {delay_s:g} s", "error")

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
            self._view.take(child.name, line.decode(errors="replace").rstrip())
        return await process.wait()


def kill(child: Child) -> None:
    """End a child and what it started, at once."""
    if child.process is not None and child.process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.process.pid, signal.SIGKILL)
