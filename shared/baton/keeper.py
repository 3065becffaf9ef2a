"""Run a process again when it dies; the pauses grow while it dies soon."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from time import monotonic

BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
STABLE_S = 60.0
"""After so long a start counts as good, and the pauses begin anew."""


async def keep(
    run: Callable[[], Awaitable[int]],
    *,
    until: asyncio.Event,
    is_last: Callable[[int], bool],
    on_death: Callable[[int, float], None],
) -> int | None:
    """Call `run`, which starts a process and returns its status, until `until` is set or a status is the last.

    `on_death` hears each other status, and the pause in seconds that follows. Returns the last status; None: `until` was set
    in a pause.
    """
    num_failures = 0
    while True:
        started_at = monotonic()
        status = await run()
        if until.is_set() or is_last(status):
            return status
        if monotonic() - started_at > STABLE_S:
            num_failures = 0
        delay_s = BACKOFF_S[min(num_failures, len(BACKOFF_S) - 1)]
        num_failures += 1
        on_death(status, delay_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await until.wait()
            return None
