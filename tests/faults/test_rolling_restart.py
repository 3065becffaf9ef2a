"""A process of each role after another is restarted under load, as an upgrade does, and no client notices."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from tests.cluster import Answer, Cluster, stream
from tests.faults.test_workers_die import NUM_TOKENS, decided
from tests.processes import BatonProcess

NUM_CLIENTS = 8
NUM_STEADY = 1
"""Of these, one asks on while a process starts, which takes the machine's cores."""


@pytest.fixture(autouse=True)
def nothing_is_left(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.revive()
    cluster.assert_quiet()


@dataclass
class Load:
    """Clients that ask one thing after another, of the router that is named now."""

    cluster: Cluster
    prompts: list[list[int]]
    wanted: list[list[int]]
    router: str
    is_over: bool = False
    may_ask: asyncio.Event = field(default_factory=asyncio.Event)
    num_right: Counter[str] = field(default_factory=Counter)
    """Answers by router."""
    waiting: Counter[str] = field(default_factory=Counter)
    """Requests that were sent and have no token yet, by router."""

    async def run(self) -> None:
        turns = itertools.count()
        async with self.cluster.async_client("2p2d") as first, self.cluster.async_client("0p2d") as second:
            clients = {"2p2d": first, "0p2d": second}

            async def ask(is_steady: bool) -> None:
                while not self.is_over:
                    await asyncio.sleep(0) if is_steady else await self.may_ask.wait()
                    i, router = next(turns) % len(self.prompts), self.router
                    self.waiting[router] += 1

                    def on_token(answer: Answer, router: str = router) -> None:
                        self.waiting[router] -= len(answer.ids) == 1

                    answer = await stream(clients[router], self.prompts[i], on_token, max_tokens=NUM_TOKENS)
                    assert answer.ids == self.wanted[i]
                    self.num_right[router] += 1

            await asyncio.gather(*(ask(at < NUM_STEADY) for at in range(NUM_CLIENTS)))

    async def until_more_are_right(self) -> None:
        """Wait for answers that began after this, and ended well."""
        target = self.num_right.total() + NUM_CLIENTS
        while self.num_right.total() < target:
            await asyncio.sleep(0.01)


async def restart(load: Load, processes: dict[str, BatonProcess], name: str) -> None:
    """End a process as an upgrade does, and start its successor in its place."""
    cluster, old = load.cluster, processes[name]
    load.may_ask.set()
    await load.until_more_are_right()
    if processes is cluster.routers:
        load.router = "0p2d"  # as a load balancer does, whose connections to the old one go on
        while load.waiting[name]:
            await asyncio.sleep(0.01)
    assert await asyncio.to_thread(old.stop) == 0
    load.may_ask.clear()
    processes[name] = BatonProcess(old.arguments, old.log_file, old.port).start()
    await asyncio.to_thread(processes[name].wait_ready)
    await asyncio.to_thread(cluster.wait_seen)


def test_a_rolling_restart_of_every_role_fails_nothing(cluster: Cluster) -> None:
    prompts, wanted = decided(cluster)
    load = Load(cluster, prompts[:NUM_CLIENTS], wanted[:NUM_CLIENTS], router="2p2d")
    moved = 'replays_total{reason="moved"}'

    async def run() -> float:
        running = asyncio.create_task(load.run())

        async def roll() -> float:
            for name in ("p0", "d0", "d1"):
                await restart(load, cluster.workers, name)
            num_moved = cluster.routers["2p2d"].metrics()[moved]
            await restart(load, cluster.routers, "2p2d")
            return num_moved

        rolling = asyncio.create_task(roll())
        await asyncio.wait((running, rolling), return_when=asyncio.FIRST_COMPLETED)
        load.is_over = True
        load.may_ask.set()
        await running
        return await rolling

    assert asyncio.run(run()) > 0
    assert load.num_right.keys() == {"2p2d", "0p2d"}
