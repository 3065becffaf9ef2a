"""LoopLag: watches the event loop by a timer of its own, so that whatever holds it for long is seen in the metrics."""

from __future__ import annotations

import asyncio

from baton.metrics import RouterMetrics

INTERVAL_S = 0.01


class LoopLag:
    """A timer that is due every 10 ms, and is as late as everything else that waits for the loop."""

    def __init__(self, metrics: RouterMetrics) -> None:
        self._observe = metrics.event_loop_lag_seconds.observe
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due_at = 0.0

    def start(self) -> None:
        self._due_at = self._loop.time() + INTERVAL_S
        self._timer = self._loop.call_at(self._due_at, self._tick)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self._observe(max(self._loop.time() - self._due_at, 0.0))
        self.start()
