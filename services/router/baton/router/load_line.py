"""A line in the log every 10 s while there is load: what waits, what runs, how fast, how full the caches are."""

from __future__ import annotations

from typing import Any

from baton.logs import get_logger
from baton.metrics import RouterMetrics
from baton.router.dispatcher import Dispatcher
from baton.router.history import Sample
from baton.router.repeated import Repeated

INTERVAL_S = 10.0
_RATES = ("requests_per_s", "tokens_per_s", "first_token_p50_ms", "gap_p50_ms")
_MISHAPS = ("errors", "refusals", "replays")
_log = get_logger("load")


class LoadLine:
    """Compares the counters with what they were, so that requests and tokens pay nothing for it."""

    def __init__(self, metrics: RouterMetrics, dispatcher: Dispatcher) -> None:
        self._metrics = metrics
        self._dispatcher = dispatcher
        self._last = Sample.of(metrics, dispatcher.journal)
        telling = Repeated(INTERVAL_S, self._tell)
        self.start, self.close = telling.start, telling.close

    def take(self) -> dict[str, Any]:
        """Return what came since the last call; empty: nothing, and nothing runs."""
        now = Sample.of(self._metrics, self._dispatcher.journal)
        since, self._last = now.since(self._last), now
        dispatcher = self._dispatcher
        num_running, num_open = dispatcher.num_running, len(dispatcher.flows)
        mishaps = {name: since[name] for name in _MISHAPS if since[name]}
        if not (num_open or mishaps or since["requests_per_s"] or since["tokens_per_s"]):
            return {}
        loads = [worker.load for worker in dispatcher.pool.workers.values() if worker.load.kv_total_blocks]
        return {
            "running": num_running,
            "waiting": num_open - num_running,
            **{name: since[name] for name in _RATES},
            "kv_usage": round(max((1 - each.kv_free_blocks / each.kv_total_blocks for each in loads), default=0.0), 3),
            **mishaps,
        }

    def _tell(self) -> None:
        if line := self.take():
            _log.info("load", **line)
