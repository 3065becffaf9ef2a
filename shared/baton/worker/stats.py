"""What an engine process and its face tell each other. Counts are absolute, so that a lost report costs nothing."""

from __future__ import annotations

import msgspec

from baton.config import EngineConfig
from baton.logs import LogConfig
from baton.messages import Blocks, Leg, Load, WorkerInfo
from baton.worker.settings import WorkerConfig


class Stats(msgspec.Struct, tag="stats", kw_only=True):
    """One report; the face shows the newest. What is a series of `WorkerMetrics` has its name."""

    load: Load = Load()
    refusal: str = ""
    """Why no router sends anything, if so."""
    blocks_free: int = 0
    blocks_cached: int = 0
    blocks_held: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    prompt_tokens: int = 0
    prompt_tokens_by_source: dict[str, int] = {}
    generation_tokens: int = 0
    num_preemptions: int = 0
    host_blocks: dict[str, int] = {}
    """Slots of host memory for KV, by state."""
    host_kv_moves: dict[str, int] = {}
    """Blocks that went there or came back, by event."""
    kv_transfer_bytes: int = 0
    kv_transfer_sent_bytes: int = 0
    kv_fetches_queued: int = 0
    kv_fetch_queued_seconds: float = 0.0
    kv_fetches: dict[str, int] = {}
    """Ends of fetches, by result."""
    kv_releases: dict[str, int] = {}
    """Ends of what was held for a fetch, by reason."""
    kv_integrity_failures: int = 0
    stale_messages: int = 0
    kv_leases_held: int = 0
    kv_stranded_bytes: int = 0
    transfers: list[tuple[float, float]] = []
    """Seconds and exposed seconds of each transfer since the last report."""
    phases: list[tuple[str, float]] = []
    """Names and seconds of phases that ended since the last report."""


class Pulse(msgspec.Struct, tag="pulse"):
    """The process lives; said four times a second from the first turn of its loop on."""

    is_stuck: bool
    """Whether the loop has been too long in one turn."""
    is_last: bool = False
    """The loop has ended, and the process is about to."""


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
    engine: EngineConfig
    worker: WorkerConfig
    logs: LogConfig = LogConfig()
    http: str = ""
    """Base address of the face, which it fills in once it has its port."""


class Drain(msgspec.Struct, tag="drain"):
    """Take nothing new, end what runs, and exit."""


class Failed(msgspec.Struct, tag="failed"):
    """The engine cannot start, for a reason that a restart does not change."""

    message: str


ToFace = Stats | Pulse | Ready | Logged | Failed
