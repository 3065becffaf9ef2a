"""What a worker reports to its face, gathered from the parts that count it."""

from __future__ import annotations

from collections.abc import Iterable

from baton.engine.engine import Engine
from baton.host_tier import TierCounts
from baton.worker.mailbox import Mailbox
from baton.worker.runs import Leg, Outbox, Runs
from baton.worker.stats import Stats


def take_stats(engine: Engine, legs: Iterable[Leg], runs: Runs, outbox: Outbox, mailbox: Mailbox) -> Stats:
    """Gather what is counted; the outbox's times are in one report only."""
    pool = engine.pool
    stranded = sum(leg.stranded_blocks() for leg in legs)
    if not runs:  # whatever is held now belongs to nobody
        stranded = pool.num_held
    host = engine.scheduler.host
    tier = TierCounts() if host is None else host.tier.counts()
    stats = Stats(
        load=mailbox.load,
        refusal=mailbox.refusal(),
        blocks_free=pool.num_free,
        blocks_cached=pool.num_cached,
        blocks_held=pool.num_held,
        prefix_cache_queries=engine.cache.num_queries,
        prefix_cache_hits=engine.cache.num_hits,
        prompt_tokens=outbox.prompt_tokens.total(),
        prompt_tokens_by_source=dict(outbox.prompt_tokens),
        generation_tokens=outbox.num_tokens,
        num_preemptions=engine.scheduler.num_preemptions,
        stale_messages=mailbox.dropped.total(),
        host_blocks={"used": tier.num_used, "free": tier.num_slots - tier.num_used},
        host_kv_moves={"saved": tier.num_saved, "restored": tier.num_loaded, "damaged": tier.num_damaged},
        kv_stranded_bytes=stranded * engine.memory.block_nbytes,
        transfers=[(t.seconds, t.exposed_seconds) for t in outbox.transfers],
        phases=outbox.phases,
    )
    outbox.transfers, outbox.phases = [], []
    return stats
