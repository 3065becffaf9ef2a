"""What the engine process tells its face of: plain numbers, absolute where they count, so that a lost report costs nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from baton.messages import Blocks, Leg, Load, WorkerInfo

if TYPE_CHECKING:
    from baton.engine.engine import Engine


class Stats(msgspec.Struct, tag="stats", kw_only=True):
    """One report; the face shows the newest."""

    load: Load = Load()
    at: float = 0.0
    """Monotonic seconds of the engine process's last turn: it moves while the loop is alive."""
    blocks_free: int = 0
    blocks_cached: int = 0
    blocks_held: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    prompt_tokens_cached: int = 0
    prompt_tokens_fetched: int = 0
    generation_tokens: int = 0
    num_preemptions: int = 0
    kv_bytes_sent: int = 0
    kv_bytes_received: int = 0
    kv_fetches: dict[str, int] = {}
    """Ends of fetches, by result."""
    kv_releases: dict[str, int] = {}
    """Ends of what was held for a fetch, by reason."""
    kv_integrity_failures: int = 0
    stale_messages: int = 0
    leases_held: int = 0
    stranded_bytes: int = 0
    num_runs: int = 0
    transfers: list[tuple[float, float]] = []
    """Seconds and exposed seconds of each transfer since the last report."""
    phases: list[tuple[str, float]] = []
    """Names and seconds of phases that ended since the last report."""


class Ready(msgspec.Struct, tag="ready"):
    """The engine serves."""

    info: WorkerInfo


class Logged(msgspec.Struct, tag="blocks"):
    """An entry of the block log, to be written to Redis."""

    entry: Blocks


class Assignment(msgspec.Struct, kw_only=True):
    """What the face tells its engine process first."""

    worker_id: str
    legs: list[Leg]
    model_name: str
    http: str
    engine: dict[str, Any]
    """Fields of `EngineConfig`."""
    worker: dict[str, Any]
    """Fields of `WorkerConfig`."""
    log_level: str = "info"


class Drain(msgspec.Struct, tag="drain"):
    """Take nothing new, end what runs, and exit."""


class Failed(msgspec.Struct, tag="failed"):
    """The engine cannot start, for a reason that a restart does not change."""

    message: str


ToFace = Stats | Ready | Logged | Failed

_EMA = 0.2
"""Weight of the newest measurement: some five steps back."""
_REFRESH_S = 0.1
"""Between counts of what waits, which walk the queues."""


class LoadMeter:
    """Measure how fast the engine is, from its steps."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._prefill_rate = 0.0
        self._decode_step_ms = 0.0
        self._num_chunk_tokens = 0
        self._num_steps = 0
        self._began_at = 0.0
        self._load = Load()
        self._at = 0.0

    def step_begins(self) -> None:
        """Note the time."""
        self._began_at = time.perf_counter()

    def step_ends(self) -> None:
        """Take in a step's time."""
        engine = self._engine
        if engine.num_steps == self._num_steps:
            return
        seconds = time.perf_counter() - self._began_at
        num_chunk_tokens = engine.num_chunk_tokens - self._num_chunk_tokens
        self._num_steps, self._num_chunk_tokens = engine.num_steps, engine.num_chunk_tokens
        if num_chunk_tokens:
            self._prefill_rate = _mean(self._prefill_rate, num_chunk_tokens / max(seconds, 1e-6))
        else:
            self._decode_step_ms = _mean(self._decode_step_ms, seconds * 1e3)

    def load(self, *, draining: bool, force: bool = False) -> Load:
        """Give the present load; counted anew at most ten times a second unless forced."""
        now = time.monotonic()
        if now - self._at < _REFRESH_S and not force and draining == self._load.draining:
            return self._load
        self._at = now
        scheduler, pool = self._engine.scheduler, self._engine.pool
        waiting = sum(s.num_tokens - s.num_computed for s in scheduler.waiting)
        begun = sum(s.num_tokens - s.num_computed for s in scheduler.running if s.num_output_tokens == 0)
        self._load = Load(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting + len(scheduler.receiving),
            waiting_tokens=max(0, waiting + begun),
            kv_free_blocks=pool.num_available,
            kv_total_blocks=pool.num_total,
            prefill_rate=self._prefill_rate,
            decode_step_ms=self._decode_step_ms,
            num_steps=self._engine.num_steps,
            draining=draining,
        )
        return self._load


def _mean(mean: float, value: float) -> float:
    return value if mean == 0.0 else mean + _EMA * (value - mean)
