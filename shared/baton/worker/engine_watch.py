"""Watch an engine process from its face: it tells that it lives, and whether its loop does; one that is stuck is ended.

The engine's mailbox thread judges the loop, since it knows what a step may take. This judges the process: a loop that
holds the interpreter, or a process that is stopped, tells nothing at all. The keeper then starts it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time

from baton.logs import get_logger
from baton.worker.beat import STUCK_S, Beat
from baton.worker.stats import Pulse

END_S = 3.0
"""How long it may stay stuck: a debugger's look, or a device's hiccup, is not worth a restart."""
ENDING_S = 30.0
"""How long a process may take to end after its loop: a device's memory is given back."""
LOOK_S = 0.25
STACK_SIGNAL = signal.SIGUSR1
"""On it an engine process writes the stacks of its threads to its log."""

log = get_logger("face")


class EngineWatch:
    """One engine process, from its start to its end."""

    def __init__(self, worker_id: str) -> None:
        self._worker_id = worker_id
        self._silent_s = STUCK_S
        self._beat = Beat(lambda: self._silent_s)
        self._is_loop_stuck = False
        self.has_ended_it = False

    def heard(self, pulse: Pulse) -> None:
        """Take in what the process says of itself; nothing is judged before the first time, while it loads."""
        self._beat.turns += 1
        self._is_loop_stuck = pulse.is_stuck
        if pulse.is_last:
            self._silent_s = ENDING_S

    @property
    def why_stuck(self) -> str | None:
        """What is wrong with it; None: its loop turns."""
        if self._beat.is_stuck:
            return "the engine process does not answer"
        return "the loop is stuck" if self._is_loop_stuck else None

    async def end_if_stuck(self, process: asyncio.subprocess.Process, draining: asyncio.Event) -> None:
        """Look until it is stuck for too long, then kill it; at once when it should drain, which it cannot."""
        stuck_s = 0.0
        while stuck_s < END_S and not (stuck_s and draining.is_set()):
            await asyncio.sleep(LOOK_S)
            self._beat.look(time.monotonic())
            # in looks, not by the clock: time in which this process did not run either does not count
            stuck_s = stuck_s + LOOK_S if self.why_stuck else 0.0
        log.error("engine_stuck", worker_id=self._worker_id, reason=self.why_stuck, effect="it is killed")
        self.has_ended_it = True
        with contextlib.suppress(ProcessLookupError):  # it ended by itself, just now
            process.send_signal(STACK_SIGNAL)
            await asyncio.sleep(LOOK_S)  # for the stacks to be written; a stopped process writes none
            process.kill()
