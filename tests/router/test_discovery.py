"""Discovery: stores of hosts are known by their blocks, and never talked to."""

from __future__ import annotations

import pytest

from baton.messages import Blocks, Load, ModelFacts, WorkerInfo
from baton.metrics import RouterMetrics
from baton.registry import WorkerRecord
from baton.router.discovery import Discovery
from baton.router.index import PrefixIndex

HASHES = [bytes([i]) * 16 for i in range(4)]


class Redis:
    """A registry that answers from lists."""

    def __init__(self) -> None:
        self.records: list[WorkerRecord] = []
        self.entries: list[Blocks] = []

    async def workers(self) -> list[WorkerRecord]:
        return self.records

    async def read_snapshot(self, worker_id: str) -> Blocks | None:
        return None

    async def read_blocks(self, after: dict[str, int]) -> list[Blocks]:
        return [each for each in self.entries if each.sequence > after.get(each.worker_id, 1 << 30)]


class Pool:
    """A pool that notes to whom it was told to talk."""

    def __init__(self) -> None:
        self.connected: list[str] = []

    def connect(self, endpoint: str) -> None:
        self.connected.append(endpoint)

    def disconnect(self, endpoint: str) -> None: ...

    def endpoints(self) -> list[str]:
        return self.connected


def record(worker_id: str, leg: str, incarnation: str = "i") -> WorkerRecord:
    facts = ModelFacts(name="m", max_model_len=1, vocab_size=1, block_size=16)
    info = WorkerInfo(
        worker_id=worker_id,
        incarnation=incarnation,
        legs=(leg,),
        control=f"ipc:///{worker_id}",
        kv="",
        layout="",
        model=facts,
    )
    return WorkerRecord(info, Load())


@pytest.mark.asyncio
async def test_blocks_of_a_store_are_known_while_it_lives_and_nobody_connects_to_it() -> None:
    redis, pool, index = Redis(), Pool(), PrefixIndex()
    discovery = Discovery(redis, pool, index, RouterMetrics("m"))

    async def look() -> None:
        await discovery._find_workers(redis)
        await discovery._read_logs(redis)

    redis.records = [record("d", "decode"), record("s", "store")]
    redis.entries = [Blocks("s", "i", 1, HASHES[:2])]
    await look()
    assert pool.connected == ["ipc:///d"]
    assert index.num_stored("s", HASHES, 0) == 2
    redis.records[1] = record("s", "store", "j")
    await look()
    assert index.num_stored("s", HASHES, 0) == 0
    redis.entries = [Blocks("s", "j", 1, HASHES[:3])]
    await look()
    assert index.num_stored("s", HASHES, 0) == 3
    del redis.records[1]
    await look()
    assert index.num_stored("s", HASHES, 0) == 0
